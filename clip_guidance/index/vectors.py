"""The vector file: a header of 64 bytes, then rows of d numbers, appended and read through a memory map.

A row is written once. The catalogue (:mod:`.store`) says how many rows count: what a kill left behind the last row
that the catalogue knows is overwritten by the next writer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clip_guidance._files import fsync_file, fsync_folder, shorten, stat_regular

_HEADER = struct.Struct("<8sII48x")  # magic, d, bytes per number; padded so that rows are aligned
_MAGIC = b"CLIPVEC1"
_DTYPES: dict[int, np.dtype[Any]] = {4: np.dtype("<f4"), 2: np.dtype("<f2")}
BLOCK = 16384  # rows held in memory at once: 32 MiB of 512 float32
DENSE = 4  # of so many rows next to each other one is wanted at least, where all of them are read


class ImageIndexError(ValueError):
    """Report that an image index cannot be used as asked; the message names it and says what to do.

    Example:
        >>> from clip_guidance.index import ImageIndex, ImageIndexError
        >>> try:
        ...     ImageIndex.open("no-such-folder", create=False)
        ... except ImageIndexError as error:
        ...     print("no-such-folder" in str(error))
        True
    """


def short_name(path: Path) -> str:
    """Return the end of a path, short enough for a message."""
    return shorten(str(path), 120, end=True)


class VectorFile:
    """Read and write vectors of one size and precision in a file.

    Args:
        path: An existing file, made by :meth:`create`.

    Raises:
        FileNotFoundError: There is no such file.
        ImageIndexError: The file is not a vector file, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            stat_regular(path)  # a pipe would be waited for
            with path.open("rb") as file:
                header = file.read(_HEADER.size)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ImageIndexError(f"{short_name(path)}: cannot be read ({error.strerror})") from error
        magic, dim, itemsize = _HEADER.unpack(header) if len(header) == _HEADER.size else (b"", 0, 0)
        if magic != _MAGIC or itemsize not in _DTYPES or dim < 1:
            raise ImageIndexError(f"{short_name(path)}: expected a vector file, its first bytes are {header[:8]!r}")
        self.path, self.dim, self.dtype = path, dim, _DTYPES[itemsize]
        self._map: np.ndarray | None = None

    @classmethod
    def create(cls, path: Path, dim: int, dtype: str) -> VectorFile:
        """Make an empty file for vectors of ``dim`` numbers, "float32" or "float16", in the place of any other."""
        with path.open("wb") as file:
            file.write(_HEADER.pack(_MAGIC, dim, np.dtype(dtype).itemsize))
            fsync_file(file)
        fsync_folder(path.parent)
        return cls(path)

    def write(self, row: int, embeds: np.ndarray) -> None:
        """Write vectors (n, d) at ``row`` and after; on return they are on the disk.

        Raises:
            OSError: They cannot be written; what stands before ``row`` is as it was.
        """
        with self.path.open("r+b") as file:
            file.seek(_HEADER.size + row * self.dim * self.dtype.itemsize)
            file.write(np.ascontiguousarray(embeds, self.dtype).tobytes())
            fsync_file(file)

    def read(self, rows: int) -> np.ndarray:
        """Map the first rows, read-only (rows, d); fewer where the file was cut short."""
        held = (self.path.stat().st_size - _HEADER.size) // (self.dim * self.dtype.itemsize)
        rows = min(rows, held)
        if rows <= 0:  # an empty file cannot be mapped
            return np.empty((0, self.dim), self.dtype)
        if self._map is None or len(self._map) < rows:  # the map is kept, since a new one would be paged in anew
            self._map = np.memmap(self.path, self.dtype, "r", _HEADER.size, (held, self.dim))
        return self._map[:rows]


def blocks(vectors: np.ndarray, rows: np.ndarray, size: int = BLOCK) -> Iterator[tuple[int, np.ndarray]]:
    """Read chosen rows of a large array, as float32, ``size`` at a time.

    Args:
        vectors: Vectors (n, d), usually a memory map.
        rows: Rows to read, ascending int64.
        size: Rows per block.

    Yields:
        The position in ``rows`` where a block starts, and the block (at most ``size``, d).
    """
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        whole = part[-1] - part[0] == len(part) - 1  # without gaps it is a slice, which copies nothing
        block = vectors[part[0] : part[-1] + 1] if whole else vectors[part]
        yield start, np.asarray(block, np.float32)
