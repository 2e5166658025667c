"""The HTML that results are drawn with: pages, their parts, thumbnails."""
