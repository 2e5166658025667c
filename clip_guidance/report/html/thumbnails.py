"""An image as a report shows it: small, inside the page, and without what the file says about its maker."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

from clip_guidance.images.load import ImageError, ImageSource, image_name, load_image

SIZE = 240  # pixels of the longer side: sharp at 160 on a telephone
SMALL = 96 * 96  # pixels up to which PNG, which is exact, is small enough


@dataclass(frozen=True)
class Thumbnail:
    """A small image, or why there is none.

    Attributes:
        name: the path of the image, or ``image 7``.
        uri: ``data:image/...``, None where it cannot be read.
        reason: why it cannot.
    """

    name: str
    uri: str | None
    reason: str = ""


def thumbnail(source: ImageSource, name: str | None = None, size: int = SIZE) -> Thumbnail:
    """An image, at most ``size`` pixels wide and high; never fails.

    Args:
        source: as for ``load_image``.
        name: what to call it; by default its path.
        size: pixels.
    """
    name = name or image_name(source)
    try:
        return Thumbnail(name, data_uri(load_image(source, name), size))
    except ImageError as error:
        return Thumbnail(name, None, error.reason)


def data_uri(image: Image.Image, size: int = SIZE) -> str:
    """An RGB image, reduced to at most ``size`` pixels a side, as a ``data:`` address of its pixels alone."""
    small = image.copy()
    small.thumbnail((size, size), Image.Resampling.LANCZOS)
    small.info.clear()  # no place, no maker, no colour profile of kilobytes
    kind = "png" if small.width * small.height <= SMALL else "jpeg"
    buffer = io.BytesIO()
    small.save(buffer, kind, **({"optimize": True} if kind == "png" else {"quality": 82}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
