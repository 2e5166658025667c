"""Generate images: their settings and records, the generator, and ``load_pipeline``.

Its modules are imported one by one, so that the settings and the record of an image do not load torch.
"""
