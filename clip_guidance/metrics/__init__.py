"""Numbers about images: scores of one, metrics of many, distances between sets.

The functions that users need are attributes of ``clip_guidance`` itself; modules here are imported one by one, so that
what reads a file of scores does not load torch.
"""
