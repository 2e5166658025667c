"""What the methods of an index return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from clip_guidance._display import DisplayMixin
from clip_guidance.images.load import Skipped


@dataclass(frozen=True)
class Hit:
    """Describe an image that was found.

    Attributes:
        path: Absolute path.
        score: Cosine with the query, in [-1, 1].
        metadata: JSON values given when the image was added, or later.

    Example:
        >>> from clip_guidance.index import Hit
        >>> hit = Hit("/photos/cat.png", 0.31, {"year": 2020})
        >>> f"{hit.score:.2f} {hit.path}", hit.metadata["year"]
        ('0.31 /photos/cat.png', 2020)
    """

    path: str
    score: float
    metadata: dict[str, Any]


class Hits(DisplayMixin, list[Hit]):
    """List the images that were found, best first; a notebook shows them."""


@dataclass
class Verification:
    """Report what became of the files of an index.

    Attributes:
        intact: Number of files that are as they were indexed.
        changed: Paths whose content is another now.
        missing: Paths where there is no file any more, or a file that cannot be read.
        damaged: Paths whose vectors in the index do not match their checksums; such images are not searched until they
            are added again.

    Example:
        >>> from clip_guidance.index import Verification
        >>> found = Verification(intact=2, missing=["/photos/cat.png"])
        >>> found.intact, found.changed, found.missing
        (2, [], ['/photos/cat.png'])
    """

    intact: int = 0
    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Moved:
    """Report an image that lies elsewhere now.

    Attributes:
        old: Absolute path where the image was.
        new: Absolute path where the image is.

    Example:
        >>> from clip_guidance.index import Moved
        >>> Moved(old="/photos/cat.png", new="/photos/pets/cat.png").new
        '/photos/pets/cat.png'
    """

    old: str
    new: str


@dataclass
class Changes:
    """Report what adding or synchronising did; everything in the report is on the disk.

    Reports are added with ``+``.

    Attributes:
        added: Paths of new images.
        updated: Paths whose content is another now.
        moved: Images found at a new path, gone from the old one.
        unchanged: Number of images that were as the index knew them.
        removed: Paths taken out because there is no file any more (``ImageIndex.sync`` only).
        skipped: Files that could not be read, and why. An image that the index already holds stays as it was.
        repaired: Paths whose vectors in the index were damaged, and which were encoded anew; they are counted above,
            too.

    Example:
        >>> from clip_guidance.index import Changes
        >>> total = Changes(added=["/photos/cat.png"]) + Changes(unchanged=3, removed=["/photos/dog.png"])
        >>> total.added, total.unchanged, total.removed
        (['/photos/cat.png'], 3, ['/photos/dog.png'])
    """

    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    moved: list[Moved] = field(default_factory=list)
    unchanged: int = 0
    removed: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)

    def __add__(self, other: Changes) -> Changes:
        return Changes(
            self.added + other.added,
            self.updated + other.updated,
            self.moved + other.moved,
            self.unchanged + other.unchanged,
            self.removed + other.removed,
            self.skipped + other.skipped,
            self.repaired + other.repaired,
        )
