"""``clip-guidance index``: make images searchable, and keep the index up to date."""

from __future__ import annotations

import json as jsonlib
import os
from typing import TYPE_CHECKING, Any

import typer

from clip_guidance.cli import _common as common
from clip_guidance.cli import _options as options

if TYPE_CHECKING:
    from clip_guidance.clip import DualEncoder
    from clip_guidance.index import Changes, ImageIndex

DEFAULT_MODEL = "emoji"


def command(
    paths: options.Paths,
    index: options.Address,
    metadata: options.Metadata = None,
    prune: options.Prune = False,
    model: options.IndexModel = None,
    cache: options.Cache = None,
    json: options.Json = False,
    device: options.Device = None,
    batch_size: options.BatchSize = 64,
) -> None:
    """Add images to an index, or bring it up to date.

    Changed and moved files are detected, and unchanged files are not read again. An interrupted run keeps the images
    added so far.

    Example: clip-guidance index images/ --index images.index --metadata album=summer
    """
    from clip_guidance.images.find import find_images
    from clip_guidance.index.results import Changes

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("index: processes of a launcher would each index all images; start it once for each folder")
    extra = dict(map(_pair, metadata or []))
    found = find_images(paths)
    clip = _clip_of(index, model, device)
    total, done = Changes(), 0
    with common.caching(clip, cache) as encoder, _open(index, encoder) as opened:
        with common.Job() as job, common.progress() as bar:
            task = bar.add_task("images", total=len(found))
            for changes in opened.iter_add(found, extra, batch_size):
                bar.advance(task, _size(changes))
                total += changes
                done += _size(changes) - len(changes.skipped)
            if prune:
                total += opened.sync(batch_size=batch_size)
        for skipped in total.skipped:
            job.fail(skipped.path, skipped.reason)
        count = len(opened)
    _print(total, opened, count, json, job)
    job.finish(done, len(found))


def _print(total: Changes, opened: ImageIndex, count: int, json: bool, job: common.Job) -> None:
    """Print the changes as counts, or as JSON with the paths."""
    if json:
        moved = [{"from": move.old, "to": move.new} for move in total.moved]
        rows = {"added": total.added, "updated": total.updated, "moved": moved, "removed": total.removed}
        rows["repaired"] = total.repaired
        known = {"name": opened.model, "fingerprint": opened.fingerprint}
        common.print_json(
            {"model": known, **rows, "unchanged": total.unchanged, "images": count, "failed": job.failures}
        )
    else:
        counts = {name: len(getattr(total, name)) for name in ("added", "updated", "moved", "removed")}
        counts |= {"repaired": len(total.repaired)} if total.repaired else {}  # whose vectors were damaged
        table = {**counts, "unchanged": total.unchanged, "failed": len(job.failures), "images in all": count}
        common.print_table(["what", "number"], [list(row) for row in table.items()])


def _clip_of(address: str, model: str | None, device: str | None) -> DualEncoder:
    """Load the requested CLIP; by default that of the index, or else ``DEFAULT_MODEL``."""
    from clip_guidance.index import ImageIndex, ImageIndexError

    if model is None:
        try:
            with ImageIndex.open(address, create=False) as made:
                model = made.model
        except ImageIndexError:  # there is no index yet; any other problem is raised when it is opened with the CLIP
            model = DEFAULT_MODEL
    return common.load_clip(model, device)


def _open(address: str, clip: DualEncoder) -> ImageIndex:
    from clip_guidance.index import ImageIndex

    return ImageIndex.open(address, clip)


def _size(changes: Changes) -> int:
    listed = (changes.added, changes.updated, changes.moved, changes.skipped)
    return changes.unchanged + sum(len(paths) for paths in listed)


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise typer.BadParameter(f"--metadata: expected KEY=VALUE, got {text}")
    try:
        return key, jsonlib.loads(value, parse_constant=str)
    except ValueError:
        return key, value
