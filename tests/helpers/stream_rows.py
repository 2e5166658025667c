"""Rows of small images, one of which is broken."""

import io

import numpy as np
from PIL import Image

ROWS = 60
BROKEN = 17  # the number of the row whose image is cut off


def encoded(i):
    pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()[: 60 if i == BROKEN else None]
