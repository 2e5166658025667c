"""The files of images: their bytes, and the hash by which an image is recognised wherever it lies."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from clip_guidance._files import is_valid_text, shorten, stat_regular

MAX_BYTES = 1 << 30  # of a file: 179 megapixels, above which no image is decoded, take 0.7 GB in 8 bits uncompressed
NO_MEMORY = "needs more memory than there is"


class ImageError(ValueError):
    """An image cannot be read; the message names the image and the reason.

    Args:
        name: File name of the image, or what else it is called in messages. In the message, the end of a long name.
        reason: Why it cannot be read; cut after 200 characters, since a decoder may quote the file.

    Attributes:
        name: As given.
        reason: As in the message.

    Example:
        >>> import clip_guidance as cg
        >>> from clip_guidance.images.load import load_image
        >>> try:
        ...     load_image("missing.png")
        ... except cg.ImageError as error:
        ...     print(error, "|", error.reason)
        missing.png: no such file | no such file
    """

    def __init__(self, name: str, reason: str) -> None:
        reason = shorten(reason, 200)
        super().__init__(f"{shorten(name, 298 - len(reason), end=True)}: {reason}")
        self.name, self.reason = name, reason


def check_name(path: str) -> None:
    """Check that a file name can be stored as text.

    Raises:
        ImageError: The name holds bytes that are not UTF-8.
    """
    if not is_valid_text(path):
        raise ImageError(path, "its name is not valid text; rename it")


def stat_image(path: str) -> os.stat_result:
    """Return size and times of an image file.

    Raises:
        ImageError: There is no such file, it is a folder, a pipe or a device, or it may not be read.
    """
    try:
        return stat_regular(path)
    except FileNotFoundError:
        raise ImageError(path, "no such file") from None
    except IsADirectoryError:
        raise ImageError(path, "is a folder that holds no image") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise ImageError(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from None


def read_bytes(path: str) -> bytes:
    """Read the bytes of an image file.

    Raises:
        ImageError: As :func:`stat_image` says, the file is larger than ``MAX_BYTES`` (a sparse file may pretend to any
            size), or reading fails.
    """
    size = stat_image(path).st_size
    if size > MAX_BYTES:
        raise ImageError(path, f"too large, {size / 1e9:.1f} GB where {MAX_BYTES / 1e9:.1f} GB are the cap")
    try:
        return Path(path).read_bytes()
    except MemoryError:
        raise ImageError(path, NO_MEMORY) from None
    except OSError as error:
        raise ImageError(path, f"cannot be read ({error.strerror})") from None


def content_hash(data: bytes) -> str:
    """Compute the BLAKE2b-128 hash of a file's bytes, as 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
