"""What the catalogue holds, and how images are chosen by their path."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from clip_guidance.index.where import Condition, both, compile_where

Paths: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Where: TypeAlias = str | Mapping[str, Any] | None

# Both parts use SQLite's index of paths, however many paths are asked for.
_INSIDE = f"""id IN (SELECT found.id FROM json_each(?) AS asked JOIN entries AS found ON found.path = asked.value)
    OR id IN (SELECT found.id FROM json_each(?) AS asked JOIN entries AS found
    ON found.path >= asked.value || '{os.sep}' AND found.path < asked.value || '{chr(ord(os.sep) + 1)}')"""


@dataclass(frozen=True)
class Entry:
    """Describe an image of the index.

    Attributes:
        id: Number that no other image of this index ever has.
        path: Absolute path.
        hash: BLAKE2b-128 of the file's bytes, hexadecimal.
        size: Size of the file, in bytes.
        mtime_ns: Time when the file was last changed; 0 where that was too close to the reading to be relied on.
        row: Row of the vector file.
        metadata: JSON values given by the user.

    Example:
        >>> from clip_guidance.index import Entry
        >>> file = {"path": "/photos/cat.png", "hash": "0f" * 16, "size": 68, "mtime_ns": 0}
        >>> entry = Entry(id=1, row=0, metadata={"year": 2020}, **file)
        >>> entry.path, entry.metadata
        ('/photos/cat.png', {'year': 2020})
    """

    id: int
    path: str
    hash: str
    size: int
    mtime_ns: int
    row: int
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """Describe a file as it was found, and the patch of its metadata (JSON merge patch, RFC 7396)."""

    path: str
    hash: str
    size: int
    mtime_ns: int
    patch: str = "{}"


@dataclass
class Batch:
    """Collect what one transaction acknowledges.

    Attributes:
        put: New or changed images.
        embeds: Vectors of these images (len(put), d).
        moved: Number and new place of images that have moved; also the old place, with a new time or patch.
    """

    put: list[Seen] = field(default_factory=list)
    embeds: Sequence[np.ndarray] | np.ndarray = ()
    moved: list[tuple[int, Seen]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.put or self.moved)


def inside(paths: Iterable[str | os.PathLike[str]]) -> Condition:
    """Choose the images of these paths, and those below them where they are folders.

    The folders need not exist any more.
    """
    asked = json.dumps([os.path.abspath(path).rstrip(os.sep) for path in paths])
    return Condition(_INSIDE, (asked, asked))


def exactly(paths: Iterable[str]) -> Condition:
    """Choose the images of these absolute paths."""
    return Condition("path IN (SELECT value FROM json_each(?))", (json.dumps(list(paths)),))


def chosen(paths: Paths | None, where: Where) -> Condition:
    """Choose the images of some paths that pass a filter; either may be None.

    Raises:
        ValueError: Both are None, or the filter cannot be read.
    """
    if paths is None and where is None:
        raise ValueError("expected paths, where or both: which images are meant?")
    condition = compile_where(where)
    return condition if paths is None else both(inside(as_paths(paths)), condition)


def as_paths(paths: Paths) -> Iterable[str | os.PathLike[str]]:
    """Return the paths as an iterable, where a single path may have been given."""
    return [paths] if isinstance(paths, (str, os.PathLike)) else paths
