"""The decoders that may read an image: a declared list, whatever else Pillow or its plug-ins know.

Pillow picks a decoder by the first bytes of a file, not by its name, and some decoders start programs: PostScript goes
to Ghostscript. Every image that the package opens is therefore opened by :func:`open_image`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import struct
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF")
_PLUGINS = ("Png", "Jpeg", "WebP", "Gif", "Bmp", "Tiff", "Ppm", "Ico", "Jpeg2K", "Avif")


def open_image(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Identify an image, and read its header, with the decoders of ``FORMATS`` alone.

    Args:
        file: A path, or a file opened for reading in binary.

    Returns:
        The image as its file stores it, not decoded yet.

    Raises:
        PIL.UnidentifiedImageError: No decoder of the list knows the file.
        OSError: The file cannot be read. A decoder may raise anything else, too.

    Example:
        >>> import io
        >>> from clip_guidance.images.decoders import open_image
        >>> image = open_image(io.BytesIO(b"P6 2 1 255 " + bytes(6)))
        >>> image.format, image.size
        ('PPM', (2, 1))
    """
    from PIL import Image  # `clip-guidance --help` imports modules that import this one

    return Image.open(file, formats=_available())


@functools.cache
def _available() -> tuple[str, ...]:
    """Load the plug-ins one by one: loading all that Pillow has takes a fifth of a second."""
    from PIL import Image

    for plugin in _PLUGINS:
        with contextlib.suppress(ImportError):  # Pillow before 11.3 has no AVIF
            importlib.import_module(f"PIL.{plugin}ImagePlugin")
    return tuple(name for name in FORMATS if name in Image.OPEN)


def foreign_format(start: bytes) -> str | None:
    """Name the format of a file that is not read, judged by its first bytes alone; None where Pillow knows none."""
    from PIL import Image

    Image.init()
    for name, (_, accepts) in Image.OPEN.items():
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):  # as Pillow: the file is too short
            if name not in FORMATS and accepts is not None and accepts(start[:16]) is True:
                return name
    return None
