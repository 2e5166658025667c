"""Sources of image-caption pairs: folders, tables, tars and data sets of the Hub."""
