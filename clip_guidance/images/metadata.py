"""The record that a generated image carries in a text chunk of its PNG file: written here, and read here.

Pillow is imported when a record is read or written: ``clip-guidance --help`` imports this module.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

from clip_guidance.images.decoders import open_image

if TYPE_CHECKING:
    from PIL import Image

METADATA_KEY = "clip_guidance"


def png_with_record(image: Image.Image, record: Mapping[str, Any]) -> bytes:
    """Encode an image as a PNG file that carries a record.

    Args:
        image: The image, in any mode that PNG can store.
        record: What can be written as JSON; :func:`read_record` finds only records with a dict under ``"settings"``.

    Returns:
        The bytes of the file; the record is the text chunk ``clip_guidance``.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> from clip_guidance.images.metadata import png_with_record, read_record
        >>> data = png_with_record(Image.new("RGB", (8, 8)), {"settings": {"seed": 7}})
        >>> read_record(io.BytesIO(data))
        {'settings': {'seed': 7}}
    """
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text(METADATA_KEY, json.dumps(record, allow_nan=False))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def read_record(path: str | os.PathLike[str] | IO[bytes]) -> dict[str, Any] | None:
    """Read the record that an image carries.

    Args:
        path: An image file, or one opened for reading in binary.

    Returns:
        The record; None where the file carries none, is not an image, or cannot be read.
    """
    try:
        with open_image(path) as image:
            record = json.loads(image.info[METADATA_KEY])
    except Exception:  # missing, broken, another format, another program's text
        return None
    return record if isinstance(record, dict) and isinstance(record.get("settings"), dict) else None
