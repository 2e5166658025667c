"""The bytes of an image's file, and the hash that it is known by wherever it lies."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from clip_guidance.images.load import ImageError


def look_at(path: str) -> os.stat_result:
    """Size and time of a file.

    Raises:
        ImageError: it is none that can be indexed.
    """
    try:
        path.encode()
        found = os.stat(path)
    except UnicodeEncodeError:
        raise ImageError(path, "its name is no valid text; rename it") from None
    except FileNotFoundError:
        raise ImageError(path, "no such file") from None
    except (OSError, ValueError) as error:  # the second for a name with a null byte
        raise ImageError(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if stat.S_ISDIR(found.st_mode):
        raise ImageError(path, "is a folder that holds no image")
    if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
        raise ImageError(path, "is no regular file")
    return found


def content_hash(data: bytes) -> str:
    """BLAKE2b-128 of a file's bytes, hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_bytes(path: str) -> bytes:
    """A file's bytes.

    Raises:
        ImageError: it cannot be read.
    """
    look_at(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(path, f"cannot be read ({error.strerror})") from None
