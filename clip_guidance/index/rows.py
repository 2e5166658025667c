"""Rows of the images that meet a condition, read so that a wide filter costs little more than a narrow one.

Fetching a row number for each match into Python took most of a search whose filter half of the images pass. So SQLite
joins the numbers to one text, which NumPy reads. Each key is read by its own index, which holds all that is asked for:
with the conditions of several keys in one statement SQLite would use one index and read the metadata of all that it
finds, 4 to 7 µs per image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip_guidance.index.checksums import NONE
from clip_guidance.index.keys import index_name
from clip_guidance.index.vectors import DENSE
from clip_guidance.index.where import Condition

PAGE = 20_000_000  # rows in one text: SQLite's texts end at a thousand million letters
LOOKUP = 50  # rows that are read of an index in the time in which one image's metadata are read
_AMONG = "row IN (SELECT value FROM json_each(?))"
# The index on row ends with what is no number, if there is any.
_KIND = "(SELECT typeof(max(row)) FROM entries)"

_DAMAGE = "the row of an image is no whole number"

Fetch = Callable[[str, Sequence[Any]], list[Any]]
RowsOf = Callable[[Condition], np.ndarray]


class Rows:
    """Read the rows of one state of a catalogue.

    Args:
        fetch: Runs a statement with its parameters and returns all that it finds.
        indexes: Names of the indexes on keys that there are.
        total: Rows that the catalogue knows, of which some belong to no image.
    """

    def __init__(self, fetch: Fetch, indexes: set[str], total: int) -> None:
        self._fetch, self._indexes, self._total = fetch, indexes, total

    def meeting(self, condition: Condition, of_part: RowsOf | None = None) -> np.ndarray:
        """Return the rows of the images that meet a condition, ascending int64 (m,).

        Args:
            condition: Which images.
            of_part: Returns the rows that meet one of the parts; by default they are read.

        Raises:
            ValueError: The row of an image is no whole number.
        """
        if not condition.parts:
            return self._read(condition, self._index(condition))
        found = [part for part in condition.parts if self._index(part)]
        few = min((self._few(part) for part in found), key=len, default=None)
        if few is not None and len(few) < self._limit:
            # The sign keeps SQLite from any other index than that on row.
            sql = f"{_AMONG} AND +({condition.sql})"
            return self._read(Condition(sql, (json.dumps(few.tolist()), *condition.parameters)))
        if len(found) < len(condition.parts):  # all metadata are read anyway
            return self._read(condition)
        read = of_part or self.meeting
        rows = read(found[0])
        for part in found[1:]:
            rows = rows[np.isin(rows, read(part), assume_unique=True)]
        return rows

    def checksums(self, rows: np.ndarray) -> np.ndarray:
        """Return the checksums of the vectors of some rows, ascending int64 (m,), in their order.

        Raises:
            ValueError: A checksum, or the row of an image, is no whole number.
        """
        if not len(rows):
            return np.empty(0, np.int64)
        first, last = int(rows[0]), int(rows[-1])
        dense = last - first < DENSE * len(rows)
        where, parameters = ("row BETWEEN ? AND ?", (first, last)) if dense else (_AMONG, (json.dumps(rows.tolist()),))
        sql = f"SELECT group_concat(row), group_concat(ifnull(checksum, {NONE})) FROM entries WHERE {where}"
        ((numbers, sums),) = self._fetch(sql, parameters)
        held, expected = whole_numbers(numbers), whole_numbers(sums)
        if len(held) != len(expected):
            raise ValueError("the checksum of a vector is no whole number")
        order = held.argsort()
        held, expected = held[order], expected[order]
        places = np.searchsorted(held, rows)
        if not len(held) or places[-1] == len(held) or (held[places] != rows).any():
            raise ValueError(_DAMAGE)
        return expected[places]

    def _index(self, condition: Condition) -> str | None:
        name = index_name(condition.reads) if condition.reads else None
        return name if name in self._indexes else None

    @property
    def _limit(self) -> int:
        """How many images can be looked up one by one in the time in which an index is read."""
        return self._total // LOOKUP + 1

    def _few(self, part: Condition) -> np.ndarray:
        """Return the rows that meet a part, or the first of them where they are many."""
        among = f'SELECT row FROM entries INDEXED BY "{self._index(part)}" WHERE {part.sql} LIMIT {self._limit}'
        ((numbers,),) = self._fetch(f"SELECT group_concat(row) FROM ({among})", part.parameters)
        return whole_numbers(numbers)

    def _read(self, condition: Condition, index: str | None = None) -> np.ndarray:
        by = f'INDEXED BY "{index}"' if index else ""
        sql = f"SELECT group_concat(row), {_KIND} FROM entries {by} WHERE ({condition.sql})"
        bounds = range(PAGE, self._total, PAGE)
        pages = [""]
        if bounds:
            inner = [f" AND row >= {bound} AND row < {bound + PAGE}" for bound in bounds[:-1]]
            pages = [f" AND row < {PAGE}", *inner, f" AND row >= {bounds[-1]}"]
        found = [self._fetch(sql + page, condition.parameters)[0] for page in pages]
        if any(kind not in ("integer", "null") for _, kind in found):
            raise ValueError(_DAMAGE)
        return _sorted(np.concatenate([whole_numbers(numbers) for numbers, _ in found]))


def _sorted(rows: np.ndarray) -> np.ndarray:
    """Sort rows, each of which stands there once: by marking them, where they lie close together."""
    if not len(rows) or rows.max() >= LOOKUP * len(rows):
        return np.sort(rows)
    marks = np.zeros(rows.max() + 1, bool)
    marks[rows] = True
    return np.flatnonzero(marks)


def whole_numbers(text: str | None) -> np.ndarray:
    """Read whole numbers joined by commas, int64 (m,); None is none of them.

    Raises:
        ValueError: Something else stands there, or a number below zero.
    """
    if text is None:
        return np.empty(0, np.int64)
    if text.encode().translate(None, b"0123456789,") or ",," in f",{text},":
        raise ValueError(_DAMAGE)
    return np.fromstring(text, np.int64, sep=",")
