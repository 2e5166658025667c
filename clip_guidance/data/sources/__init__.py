"""Where image-caption pairs come from: folders, tables, tars and data sets of the Hub."""
