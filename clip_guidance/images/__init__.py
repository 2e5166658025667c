"""Turn any image source into RGB: find the files, read and hash them, decode them, read the record they carry.

Import its modules one by one: what only reads a record or a file name must not load torch.
"""
