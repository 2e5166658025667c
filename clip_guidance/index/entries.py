"""What the catalogue holds, and how images are chosen by their place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clip_guidance.index.where import Condition

# both parts are looked up in the index of paths, however many are asked for
_INSIDE = f"""id IN (SELECT found.id FROM json_each(?) AS asked JOIN entries AS found ON found.path = asked.value)
    OR id IN (SELECT found.id FROM json_each(?) AS asked JOIN entries AS found
    ON found.path >= asked.value || '{os.sep}' AND found.path < asked.value || '{chr(ord(os.sep) + 1)}')"""


@dataclass(frozen=True)
class Entry:
    """An image of the index.

    Attributes:
        id: number that no other image of this index ever has.
        path: absolute.
        hash: BLAKE2b-128 of the file's bytes, hexadecimal.
        size: of the file, in bytes.
        mtime_ns: when the file was last changed; 0 where that was too close to the reading to be relied on.
        row: of the vector file.
        metadata: given by the user.
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
    """A file as it was found, and what is to be changed in the metadata (JSON merge patch, RFC 7396)."""

    path: str
    hash: str
    size: int
    mtime_ns: int
    patch: str = "{}"


@dataclass
class Batch:
    """What one transaction acknowledges.

    Attributes:
        put: new or changed images.
        embeds: their vectors (len(put), d).
        moved: number and new place of images that lie elsewhere now; also their old place, with a new time or patch.
    """

    put: list[Seen] = field(default_factory=list)
    embeds: Sequence[np.ndarray] | np.ndarray = ()
    moved: list[tuple[int, Seen]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.put or self.moved)


def inside(paths: Iterable[str | os.PathLike[str]]) -> Condition:
    """The images of these paths, and those in them where they are folders (which need not exist any more)."""
    asked = json.dumps([os.path.abspath(path).rstrip(os.sep) for path in paths])
    return Condition(_INSIDE, (asked, asked))


def exactly(paths: Iterable[str]) -> Condition:
    """The images of these absolute paths."""
    return Condition("path IN (SELECT value FROM json_each(?))", (json.dumps(list(paths)),))
