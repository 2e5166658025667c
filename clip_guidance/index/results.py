"""What the methods of an index return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from clip_guidance.images.load import Skipped


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        path: absolute.
        score: cosine with the query, in [-1, 1].
        metadata: given when it was added, or later.
    """

    path: str
    score: float
    metadata: dict[str, Any]


class Hits(list[Hit]):
    """Images that were found, best first; a notebook shows them."""

    def _repr_html_(self) -> str:
        from clip_guidance.report.html.page import fragment
        from clip_guidance.report.similarity import hits_html

        return fragment(hits_html(self))


@dataclass
class Verification:
    """What became of the files of an index.

    Attributes:
        intact: number that are as they were indexed.
        changed: paths whose content is another now.
        missing: paths where there is no file any more; also those that cannot be read.
    """

    intact: int = 0
    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Moved:
    """An image that lies elsewhere now."""

    old: str
    new: str


@dataclass
class Changes:
    """What adding or synchronising did; everything in it is on the disk.

    Attributes:
        added: paths of new images.
        updated: paths whose content is another now.
        moved: images found at a new path, gone from the old one.
        unchanged: number of images that were as the index knew them.
        removed: paths taken out because there is no file any more (``ImageIndex.sync`` only).
        skipped: what could not be read, and why. An image that the index already holds stays as it was.
    """

    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    moved: list[Moved] = field(default_factory=list)
    unchanged: int = 0
    removed: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def __add__(self, other: Changes) -> Changes:
        return Changes(
            self.added + other.added,
            self.updated + other.updated,
            self.moved + other.moved,
            self.unchanged + other.unchanged,
            self.removed + other.removed,
            self.skipped + other.skipped,
        )
