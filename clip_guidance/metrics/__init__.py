"""Numbers about images: scores of single images, metrics of many, distances between sets.

The functions that users need are attributes of ``clip_guidance`` itself. Modules here are imported one by one, so that
reading a file of scores does not load torch.
"""
