"""Checksums of vectors: what does not match its own was damaged from outside, and is not searched.

A row of the vector file is written once, so each is compared once per opening, when it is first searched: at about
1 GB/s, where a search reads several. Its checksum is asked of the catalogue then, and never again: a row that the
catalogue names is not written to any more, so that its checksum cannot become another one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clip_guidance.index.vectors import BLOCK

NONE = 1 << 32  # in place of the checksum of a vector that was added before there were any; a CRC-32 is smaller
_UNKNOWN, _SOUND, _DAMAGED = 0, 1, 2


def checksums(vectors: np.ndarray) -> np.ndarray:
    """Compute the CRC-32 of the bytes of each vector (n, d), as int64 (n,)."""
    return np.fromiter(map(zlib.crc32, np.ascontiguousarray(vectors)), np.int64, len(vectors))


def matches(vectors: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Compare vectors (n, d) with their checksums (n,); one without a checksum should at least be a unit vector."""
    good = checksums(vectors) == expected
    if (none := expected == NONE).any():
        with np.errstate(all="ignore"):  # what is damaged may be any number
            good[none] = np.isclose(np.linalg.norm(vectors[none].astype(np.float32), axis=1), 1, atol=0.01)
    return good


class RowChecks:
    """Remember which rows of a vector file were compared with their checksums."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._states = np.empty(0, np.uint8)

    def sound(
        self, path: Path, vectors: np.ndarray, rows: np.ndarray, expected: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Say which vectors are as they were written.

        Args:
            path: The vector file; another file begins anew.
            vectors: Its vectors (n, d).
            rows: Rows to compare, ascending int64 (m,); those of n and above were cut off.
            expected: Returns the checksums of rows, ascending; those that were not compared before are asked for.

        Returns:
            Bool (m,).
        """
        if path != self._path:
            self._path, self._states = path, np.empty(0, np.uint8)
        if len(vectors) > len(self._states):
            self._states = np.concatenate([self._states, np.zeros(len(vectors) - len(self._states), np.uint8)])
        held = int(np.searchsorted(rows, len(vectors)))
        rows, cut = rows[:held], np.zeros(len(rows) - held, bool)
        new = rows[self._states[rows] == _UNKNOWN]
        for start in range(0, len(new), BLOCK):
            part = new[start : start + BLOCK]
            good = matches(vectors[part], expected(part))
            self._states[part] = np.where(good, _SOUND, _DAMAGED)
        return np.concatenate([self._states[rows] == _SOUND, cut])
