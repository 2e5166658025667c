"""Any image source to RGB: load, find, hash, and the record that an image carries.

Its modules are imported one by one, so that what only reads a record or a file name does not load torch.
"""
