"""Rows of the images that meet a condition, read so that a wide filter costs little more than a narrow one.

Each key is read by its own index, which holds all that is asked for: with the conditions of several keys in one
statement SQLite would use one index and read the metadata of all that it finds, 4 to 7 µs per image. What narrow
conditions find is read by itself, what wide ones find in the order of the index (:mod:`.order`), which is remembered as
long as the catalogue is not changed. Rows are joined by SQLite to one text, which NumPy reads: to fetch each into
Python took most of a search.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TypeVar

import numpy as np

from clip_guidance.index.checksums import NONE
from clip_guidance.index.keys import index_name
from clip_guidance.index.order import Fetch, Order
from clip_guidance.index.vectors import DENSE
from clip_guidance.index.where import ALL, Condition

PAGE = 20_000_000  # rows in one text: SQLite's texts end at a thousand million letters
LOOKUP = 50  # rows that are read of an index in the time in which one image's metadata are read
DIRECT = 8  # what at most one of so many images meets is read by itself, so that no order must be read for it
VALUES = 50  # in one condition, of which the order is asked; more are read by themselves
ANSWERS = 8  # remembered, 8 bytes per image each
ORDERS = 8  # remembered, 4 bytes per image each
_AMONG = "row IN (SELECT value FROM json_each(?))"
# The index on row ends with what is no number, if there is any.
_KIND = "(SELECT typeof(max(row)) FROM entries)"

_DAMAGE = "the row of an image is no whole number"

K = TypeVar("K")
V = TypeVar("V")


class Memory:
    """Remember what was last read of one state of a catalogue: rows that meet a condition, and orders of keys."""

    def __init__(self) -> None:
        self.answers: dict[Condition, np.ndarray] = {}
        self.orders: dict[tuple[str, ...], Order] = {}


def _recall(held: dict[K, V], key: K, most: int, make: Callable[[], V]) -> V:
    """Return what is remembered under a key, or make it; what was not asked for longest is forgotten."""
    found = held.pop(key) if key in held else make()
    while len(held) >= most:
        del held[next(iter(held))]
    held[key] = found
    return found


class Rows:
    """Read the rows of one state of a catalogue.

    Args:
        fetch: Runs a statement with its parameters and returns all that it finds.
        indexes: Names of the indexes on keys that there are.
        total: Rows that the catalogue knows, of which some belong to no image.
        memory: What was read of this state before; by default nothing.
    """

    def __init__(self, fetch: Fetch, indexes: set[str], total: int, memory: Memory | None = None) -> None:
        self._fetch, self._indexes, self._total = fetch, indexes, total
        self._memory = memory or Memory()

    def meeting(self, condition: Condition) -> np.ndarray:
        """Return the rows of the images that meet a condition, ascending int64 (m,).

        Raises:
            ValueError: The row of an image is no whole number.
        """
        return _recall(self._memory.answers, condition, ANSWERS, lambda: self._meeting(condition))

    def _meeting(self, condition: Condition) -> np.ndarray:
        if not condition.parts:
            return self._read(condition, self._index(condition))
        ready = [part for part in condition.parts if self._is_ready(part)]
        rest = [part for part in condition.parts if part not in ready]
        answers = [self.meeting(part) for part in ready]
        if not rest:
            return _common(answers)
        found = [part for part in rest if self._index(part)]
        few = min((self._few(part) for part in found if len(rest) > 1), key=len, default=None)
        if few is not None and len(few) < self._limit:
            answers.append(_sorted(few))
        if answers and len(rows := _common(answers)) < self._limit:
            # The sign keeps SQLite from any other index than that on row.
            sql = f"{_AMONG} AND +({' AND '.join(f'({part.sql})' for part in rest)})"
            parameters = (value for part in rest for value in part.parameters)
            return self._read(Condition(sql, (json.dumps(rows.tolist()), *parameters)))
        if len(found) < len(rest):  # all metadata are read anyway
            return self._read(condition)
        return _common([*answers, *(self.meeting(part) for part in rest)])

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

    def _is_ready(self, part: Condition) -> bool:
        """Say whether next to nothing must be read for the rows that meet a part."""
        return part in self._memory.answers or (self._has_order(part) and part.reads in self._memory.orders)

    def _has_order(self, condition: Condition) -> bool:
        """Say whether the order of an index answers a condition; a text of all rows must be shorter than PAGE."""
        values = sum(len(term.any_of) for term in condition.terms)
        return self._index(condition) is not None and 0 < values <= VALUES and self._total <= PAGE

    def _few(self, part: Condition) -> np.ndarray:
        """Return the rows that meet a part, or the first of them where they are many."""
        among = f'SELECT row FROM entries INDEXED BY "{self._index(part)}" WHERE {part.sql} LIMIT {self._limit}'
        ((numbers,),) = self._fetch(f"SELECT group_concat(row) FROM ({among})", part.parameters)
        return whole_numbers(numbers)

    def _is_wide(self, part: Condition) -> bool:
        """Say whether more images meet a part than are better read by themselves."""
        sql = f'SELECT 1 FROM entries INDEXED BY "{self._index(part)}" WHERE {part.sql} LIMIT 1 OFFSET '
        return bool(self._fetch(f"{sql}{self._total // DIRECT}", part.parameters))

    def _read(self, condition: Condition, index: str | None = None) -> np.ndarray:
        names = condition.reads
        if names and self._has_order(condition) and (names in self._memory.orders or self._is_wide(condition)):
            try:
                order = _recall(self._memory.orders, names, ORDERS, lambda: self._order(names, index))
                return _sorted(order.meeting(condition.terms))
            except ValueError:  # damage, which may concern no image that meets the condition
                pass
        return _sorted(self._numbers(condition, index))

    def _order(self, names: tuple[str, ...], index: str | None) -> Order:
        rows = self._numbers(ALL, index)
        if len(rows) and rows.max() >= self._total:
            raise ValueError(_DAMAGE)
        return Order(self._fetch, names, rows)

    def _numbers(self, condition: Condition, index: str | None) -> np.ndarray:
        """Return the rows that meet a condition, as SQLite finds them."""
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
        return np.concatenate([whole_numbers(numbers) for numbers, _ in found])


def _common(answers: Sequence[np.ndarray]) -> np.ndarray:
    """Return the rows that all of some answers have, ascending."""
    first, *others = by_length = sorted(answers, key=len)
    last = max((int(rows[-1]) for rows in answers if len(rows)), default=0)
    if last >= LOOKUP * len(by_length[-1]):  # far apart, or damaged
        return reduce(lambda one, other: np.intersect1d(one, other, assume_unique=True), others, first)
    for rows in others:
        marks = np.zeros(last + 1, bool)
        marks[rows] = True
        first = first[marks[first]]
    return first


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
    letters = text.encode()
    commas = np.frombuffer(letters, np.uint8) == ord(",")
    if not text or letters.translate(None, b"0123456789,") or commas[[0, -1]].any() or (commas[1:] & commas[:-1]).any():
        raise ValueError(_DAMAGE)
    return np.fromstring(text, np.int64, sep=",")
