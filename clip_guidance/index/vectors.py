"""The vector file: a header of 64 bytes, then rows of d numbers, appended and read through a memory map.

A row is written once. How many rows count is not for the file to say but for the catalogue (:mod:`.store`): what a kill
left behind the last row that the catalogue knows is overwritten by the next writer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clip_guidance._files import fsync_file, fsync_folder

_HEADER = struct.Struct("<8sII48x")  # magic, d, bytes a number; padded so that rows are aligned
_MAGIC = b"CLIPVEC1"
_DTYPES: dict[int, np.dtype[Any]] = {4: np.dtype("<f4"), 2: np.dtype("<f2")}
BLOCK = 16384  # rows held in memory at once: 32 MiB of 512 float32


class ImageIndexError(ValueError):
    """An image index that cannot be used as asked. The message names it and says what to do."""


class VectorFile:
    """Vectors of one size and precision in a file.

    Args:
        path: an existing file, made by :meth:`create`.

    Raises:
        FileNotFoundError: there is no such file.
        ImageIndexError: it is not a vector file.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
        magic, dim, itemsize = _HEADER.unpack(header) if len(header) == _HEADER.size else (b"", 0, 0)
        if magic != _MAGIC or itemsize not in _DTYPES or dim < 1:
            raise ImageIndexError(f"{path}: expected a vector file, its first bytes are {header[:8]!r}")
        self.path, self.dim, self.dtype = path, dim, _DTYPES[itemsize]
        self._map: np.ndarray | None = None

    @classmethod
    def create(cls, path: Path, dim: int, dtype: str) -> VectorFile:
        """An empty file for vectors of ``dim`` numbers, "float32" or "float16"; one in its place is overwritten."""
        with path.open("wb") as file:
            file.write(_HEADER.pack(_MAGIC, dim, np.dtype(dtype).itemsize))
            fsync_file(file)
        fsync_folder(path.parent)
        return cls(path)

    def write(self, row: int, embeds: np.ndarray) -> None:
        """Puts vectors (n, d) at ``row`` and after; on return they are on the disk."""
        with self.path.open("r+b") as file:
            file.seek(_HEADER.size + row * self.dim * self.dtype.itemsize)
            file.write(np.ascontiguousarray(embeds, self.dtype).tobytes())
            fsync_file(file)

    def read(self, rows: int) -> np.ndarray:
        """The first rows as a read-only map (rows, d).

        Raises:
            ImageIndexError: the file is shorter: it was damaged from outside.
        """
        if rows == 0:  # nothing cannot be mapped
            return np.empty((0, self.dim), self.dtype)
        held = (self.path.stat().st_size - _HEADER.size) // (self.dim * self.dtype.itemsize)
        if held < rows:
            raise ImageIndexError(f"{self.path}: expected at least {rows} vectors, it holds {held}; it was cut short")
        if self._map is None or len(self._map) < rows:  # kept, since a new map is paged in anew
            self._map = np.memmap(self.path, self.dtype, "r", _HEADER.size, (held, self.dim))
        return self._map[:rows]


def blocks(vectors: np.ndarray, rows: np.ndarray, size: int = BLOCK) -> Iterator[tuple[int, np.ndarray]]:
    """Chosen rows of a large array, as float32, ``size`` at a time.

    Args:
        vectors: (n, d), usually a memory map.
        rows: which of them, ascending int64.
        size: rows a block.

    Yields:
        The position in ``rows`` where a block starts, and the block (at most ``size``, d).
    """
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        whole = part[-1] - part[0] == len(part) - 1  # without gaps it is a slice, which copies nothing
        block = vectors[part[0] : part[-1] + 1] if whole else vectors[part]
        yield start, np.asarray(block, np.float32)
