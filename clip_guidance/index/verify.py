"""Compare an index with the files that it holds, and its vectors with their checksums; change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clip_guidance.images.files import content_hash, read_bytes
from clip_guidance.images.load import ImageError
from clip_guidance.index.add import is_unchanged
from clip_guidance.index.results import Verification

if TYPE_CHECKING:
    from clip_guidance.index.store import Store


def verify(store: Store, full: bool) -> Verification:
    """Say what became of the images of an index; see :meth:`ImageIndex.verify`."""
    if full:
        store.check_integrity()
    result = Verification(damaged=store.damaged())
    for entry in store.entries():
        try:
            same = (is_unchanged(entry) and not full) or content_hash(read_bytes(entry.path)) == entry.hash
        except ImageError:
            result.missing.append(entry.path)
            continue
        result.intact += same
        if not same:
            result.changed.append(entry.path)
    return result
