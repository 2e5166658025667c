"""An index of images that is searched by meaning; see :class:`ImageIndex`."""

from clip_guidance.index.entries import Entry as Entry
from clip_guidance.index.index import ImageIndex as ImageIndex
from clip_guidance.index.query import Term as Term
from clip_guidance.index.results import Changes as Changes
from clip_guidance.index.results import Hit as Hit
from clip_guidance.index.results import Moved as Moved
from clip_guidance.index.results import Verification as Verification
from clip_guidance.index.vectors import ImageIndexError as ImageIndexError

__all__ = ["ImageIndex", "Hit", "Changes", "Moved", "Verification", "Entry", "Term", "ImageIndexError"]
