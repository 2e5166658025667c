"""Thumbnails: images as a report shows them, small, inside the page, and without the metadata of their files."""

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
    """Hold a small image, or the reason why there is none.

    Attributes:
        name: Path of the image, or ``image 7``.
        uri: ``data:image/...``, None where the image cannot be read.
        reason: Reason why the image cannot be read.
    """

    name: str
    uri: str | None
    reason: str = ""


def thumbnail(source: ImageSource, name: str | None = None, size: int = SIZE) -> Thumbnail:
    """Make a thumbnail of at most ``size`` pixels in width and height; never fails.

    Args:
        source: Image as for ``load_image``.
        name: Name of the image; by default its path.
        size: Pixels of the longer side.
    """
    name = name or image_name(source)
    try:
        return Thumbnail(name, data_uri(load_image(source, name), size))
    except ImageError as error:
        return Thumbnail(name, None, error.reason)


def data_uri(image: Image.Image, size: int = SIZE) -> str:
    """Encode an RGB image as a ``data:`` address of its pixels alone, at most ``size`` pixels per side."""
    small = image.copy()
    small.thumbnail((size, size), Image.Resampling.LANCZOS)
    small.info.clear()  # drops metadata such as the place and the camera, and a colour profile of kilobytes
    kind = "png" if small.width * small.height <= SMALL else "jpeg"
    buffer = io.BytesIO()
    small.save(buffer, kind, **({"optimize": True} if kind == "png" else {"quality": 82}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
