"""Drop the vectors of deleted and replaced images: the others are copied to a new file, which then takes over."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import numpy as np

from clip_guidance.index.vectors import VectorFile, blocks

if TYPE_CHECKING:
    from clip_guidance.index.store import Store


def compact(store: Store) -> int:
    """Rewrite the vector file without dead rows; killed at any moment, the index is as before or as after.

    Returns:
        The number of rows dropped.
    """
    with store.writing():
        old = VectorFile(store.folder / store.get("vectors"))
        total, rows = store.get("rows"), store.rows()
        name = f"vectors-{uuid.uuid4().hex[:8]}"
        new = VectorFile.create(store.folder / name, old.dim, old.dtype.name)
        vectors = old.read(total)
        for start, block in blocks(vectors, rows[: np.searchsorted(rows, len(vectors))]):  # what was cut off stays so
            new.write(start, block)
        store.renumber(rows, name)
    with store.writing():  # no other process may make a file or change which one is used
        for path in store.folder.glob("vectors-*"):  # the old one, and what earlier kills left
            if path.name != store.get("vectors"):
                path.unlink()
    return int(total - len(rows))
