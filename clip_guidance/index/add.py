"""From files to a batch of the catalogue: which images are new, changed, moved or unchanged, and the new vectors.

A file whose size and time are those of the catalogue is not read. A file that is read is known by the hash of its
bytes: at the same place it is unchanged; at a new place, while the file at the old place is gone, it has moved. Neither
is encoded again, unless its vector was damaged meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from clip_guidance.clip.domain import DomainCheck
from clip_guidance.clip.embed_cache import Prepared, encode, prepare
from clip_guidance.images.files import check_name, content_hash, read_bytes, stat_image
from clip_guidance.images.load import ImageError, Skipped
from clip_guidance.index.entries import Batch, Entry, Seen, exactly
from clip_guidance.index.results import Changes, Moved

if TYPE_CHECKING:
    from clip_guidance.clip import DualEncoder
    from clip_guidance.index.store import Store

_UNSETTLED = 2_000_000_000  # ns; a file may change again within one tick of its clock, so a younger time is not kept


@dataclass
class _Plan:
    batch: Batch = field(default_factory=Batch)
    changes: Changes = field(default_factory=Changes)
    prepared: list[Prepared] = field(default_factory=list)  # for each image of batch.put
    new: list[bool] = field(default_factory=list)  # for each image of batch.put, whether it is an addition
    taken: set[int] = field(default_factory=set)  # entries whose move is in the batch


def add_batch(
    store: Store, clip: DualEncoder, paths: Sequence[str], patch_of: Callable[[Path], str], domain: DomainCheck
) -> Changes:
    """Read, encode and acknowledge some files.

    Args:
        store: The catalogue.
        clip: Encodes what is new, except for what its cache holds if it is a ``CachedCLIP``.
        paths: Absolute paths, no two the same.
        patch_of: Returns what is to be changed in the metadata of a path, as JSON.
        domain: Counts the images that the CLIP does not know.
    """
    plan = _Plan()
    for path in paths:
        try:
            _examine(store, clip, path, patch_of, plan)
        except ImageError as error:
            plan.changes.skipped.append(Skipped(path, error.reason))
    _encode(clip, plan, domain)
    if plan.batch:
        lost = store.apply(plan.batch)
        reason = "another process removed it from the index meanwhile; add it again"
        plan.changes.skipped += [Skipped(path, reason) for path in lost]
        plan.changes.moved = [moved for moved in plan.changes.moved if moved.new not in lost]
    if damaged := store.damaged(exactly(paths)):  # after the batch, since an image may have moved with its vector
        plan.changes += _repair(store, clip, damaged, domain)
    return plan.changes


def _repair(store: Store, clip: DualEncoder, paths: Sequence[str], domain: DomainCheck) -> Changes:
    """Encode images anew whose vectors were damaged."""
    plan = _Plan()
    for path in paths:
        try:
            data, found = read_bytes(path), stat_image(path)
            plan.prepared.append(prepare(clip, data, path))
        except ImageError as error:
            reason = f"its vector is damaged, and the image cannot be read: {error.reason}"
            plan.changes.skipped.append(Skipped(path, reason))
            continue
        plan.batch.put.append(Seen(path, content_hash(data), found.st_size, 0))
        plan.new.append(False)
    _encode(clip, plan, domain)
    if plan.batch:
        store.apply(plan.batch)
    return Changes(repaired=plan.changes.updated, skipped=plan.changes.skipped)


def is_unchanged(entry: Entry) -> bool:
    """Say whether a file has the size and time that the catalogue knows, so that it need not be read."""
    try:
        return _same(entry, stat_image(entry.path))
    except ImageError:
        return False


def _same(entry: Entry, found: os.stat_result) -> bool:
    return (entry.size, entry.mtime_ns) == (found.st_size, found.st_mtime_ns)


def _examine(store: Store, clip: DualEncoder, path: str, patch_of: Callable[[Path], str], plan: _Plan) -> None:
    check_name(path)
    found, patch, entry = stat_image(path), patch_of(Path(path)), store.by_path(path)
    settled = time.time_ns() - found.st_mtime_ns > _UNSETTLED
    if entry is not None and _same(entry, found):
        plan.changes.unchanged += 1
        if patch != "{}":
            plan.batch.moved.append((entry.id, Seen(path, entry.hash, entry.size, entry.mtime_ns, patch)))
        return
    data = read_bytes(path)
    seen = Seen(path, content_hash(data), found.st_size, found.st_mtime_ns if settled else 0, patch)
    if entry is not None and entry.hash == seen.hash:
        plan.changes.unchanged += 1
        plan.batch.moved.append((entry.id, seen))
        return
    old = None if entry is not None else _find_moved(store, seen.hash, plan.taken)
    if old is not None:
        plan.taken.add(old.id)
        plan.changes.moved.append(Moved(old.path, path))
        plan.batch.moved.append((old.id, seen))
        return
    plan.prepared.append(prepare(clip, data, path))
    plan.batch.put.append(seen)
    plan.new.append(entry is None)


def _find_moved(store: Store, content: str, taken: set[int]) -> Entry | None:
    """Find an image of the same bytes whose file is not where it was."""
    alike = (entry for entry in store.by_hash(content) if entry.id not in taken)
    return next((entry for entry in alike if not os.path.exists(entry.path)), None)


def _encode(clip: DualEncoder, plan: _Plan, domain: DomainCheck) -> None:
    if not plan.prepared:
        return
    encoded = encode(clip, plan.prepared).cpu()
    embeds = encoded.numpy()
    finite = np.isfinite(embeds).all(axis=1)
    domain.add(encoded[torch.from_numpy(finite)])
    put, new = plan.batch.put, plan.new
    plan.batch.put = [seen for seen, good in zip(put, finite, strict=True) if good]
    plan.batch.embeds = embeds[finite]
    for seen, is_new, good in zip(put, new, finite, strict=True):
        if good:
            (plan.changes.added if is_new else plan.changes.updated).append(seen.path)
        else:
            plan.changes.skipped.append(Skipped(seen.path, "the model's embedding of it is not finite"))
