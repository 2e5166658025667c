"""Images of a file of prompts: planned, drawn in batches by any number of processes, resumed, listed in a table.

A file is named after its row, so that what is done is seen from the files, and which images make a batch depends on the
rows alone. A run that was killed and started again, and a run on several processes, come to the bytes of a run that was
left alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clip_guidance._files import shorten, write_atomically
from clip_guidance.generation.batch import in_batches
from clip_guidance.generation.candidates import Candidates
from clip_guidance.generation.generator import ImageGenerator
from clip_guidance.generation.image import GeneratedImage, stem_of
from clip_guidance.generation.prompts import PromptRow
from clip_guidance.generation.settings import GenerateSettings
from clip_guidance.images.metadata import read_record

TABLE = "images.jsonl"
_UNSET = GenerateSettings("unset")


class TableError(ValueError):
    """Report a folder that holds other images than those asked for; the message names one."""


@dataclass(frozen=True)
class PlannedImage:
    """Hold an image that a row asks for.

    Attributes:
        row: Number of the row.
        files: Names of the files: one, or as many as candidates are kept, best first.
        settings: All that determines the image, or its first candidate.
    """

    row: int
    files: tuple[str, ...]
    settings: GenerateSettings


@dataclass(frozen=True)
class RowFailure:
    """Name a row, or one of its images, that could not be drawn, and why."""

    row: int
    prompt: str
    seed: int | None
    reason: str


@dataclass(frozen=True)
class TablePlan:
    """Hold what the rows ask for, and the rows that cannot be used."""

    images: list[PlannedImage]
    failures: list[RowFailure]


@dataclass(frozen=True)
class TableProgress:
    """Report what became of a batch: the number of its images, and those that failed."""

    images: int
    failures: list[RowFailure]


def plan_images(
    rows: Iterable[PromptRow], given: Mapping[str, Any], num_images: int = 1, candidates: Candidates | None = None
) -> TablePlan:
    """Plan the images of rows.

    Args:
        rows: What :func:`~clip_guidance.generation.prompts.read_prompts` returned.
        given: Settings of all images, which a row replaces.
        num_images: Images per row, from as many seeds.
        candidates: What each image is chosen among; None for itself.
    """
    keep = candidates.keep if candidates else 1
    images, failures = list[PlannedImage](), list[RowFailure]()
    for row in rows:
        planned = []
        try:
            if row.problem:
                raise ValueError(row.problem)
            first = _UNSET.overridden(given).overridden(row.values).resolved()
            seeds = candidates.n if candidates else first.particles  # of one image; no two images of a row share any
            for seed in range(first.seed, first.seed + num_images * seeds, seeds):
                settings = first.overridden({"seed": seed})
                stem = f"{row.number:06d}-{stem_of(settings)}"
                names = [stem] if keep == 1 else [f"{stem}-{rank}" for rank in range(1, keep + 1)]
                planned.append(PlannedImage(row.number, tuple(f"{name}.png" for name in names), settings))
        except ValueError as error:
            failures.append(RowFailure(row.number, str(row.values.get("prompt", "")), None, str(error)))
        else:
            images += planned
    return TablePlan(images, failures)


def find_done(
    plan: TablePlan, folder: Path, candidates: Candidates | None = None, ranked_by: Collection[str] = ()
) -> set[PlannedImage]:
    """Find the images that an earlier run drew.

    Args:
        plan: What is asked for.
        folder: Where the images are.
        candidates: As for :func:`plan_images`.
        ranked_by: Fingerprints of what ranks the candidates.

    Raises:
        TableError: An image is there that was drawn otherwise than asked for; nothing is overwritten.
    """
    done = set()
    for image in plan.images:
        there = [folder / name for name in image.files if (folder / name).exists()]
        for path in there:
            if difference := _difference(image, read_record(path), candidates, ranked_by):
                name = shorten(str(path), 120, end=True)
                raise TableError(f"{name} is there already, {difference:.120}; give another folder")
        if len(there) == len(image.files):
            done.add(image)
    return done


def draw_images(
    plan: TablePlan,
    done: set[PlannedImage],
    generator: ImageGenerator,
    folder: Path,
    batch_size: int = 1,
    candidates: Candidates | None = None,
    rank: int = 0,
    count: int = 1,
) -> Iterator[TableProgress]:
    """Draw this process's share of the images, and write each.

    Args:
        plan: What is asked for; the same for each process.
        done: Images that are there; a batch with another image is drawn as a whole, and what is missing written.
        generator: Draws them.
        folder: Where they are written.
        batch_size: Images, or candidates of an image, that are drawn together.
        candidates: As for :func:`plan_images`.
        rank: Number of this process, from 0 on.
        count: Number of processes, which take batches in turn.

    Yields:
        The progress of each batch when its images are on the disk.

    Raises:
        OSError: An image cannot be written.
        ValueError: The batch does not fit the memory.
    """
    together = 1 if candidates else batch_size
    for number, batch in enumerate(in_batches(plan.images, together, lambda image: image.settings)):
        if number % count != rank or done.issuperset(batch):
            continue
        failures = []
        try:
            drawn = _drawn(generator, batch, batch_size, candidates)
        except torch.OutOfMemoryError:
            what = f"do not fit the memory of {generator.device}: draw fewer together, or smaller ones"
            raise ValueError(f"{batch_size} images at a time {what}") from None
        for image, made in zip(batch, drawn, strict=True):
            if isinstance(made, ValueError):
                failures.append(RowFailure(image.row, image.settings.prompt, image.settings.seed, str(made)))
                continue
            for name, one in zip(image.files, made, strict=False):  # fewer than asked for where candidates failed
                if image not in done:
                    one.write(folder / name)
        yield TableProgress(len(batch), failures)


def table_rows(plan: TablePlan, folder: Path, failures: Iterable[RowFailure]) -> Iterator[dict[str, Any]]:
    """Yield a row for each image that is there, with its record, and for each that is not, with the reason.

    They are in the order of the rows; ``failed`` is None for an image, and ``image``, the name of its file, is None for
    a failure.
    """
    reasons = {(each.row, each.seed): each for each in failures}
    whole = [each for each in reasons.values() if each.seed is None]  # rows of which no image was planned
    entries: list[PlannedImage | RowFailure] = [*plan.images, *whole]
    for entry in sorted(entries, key=lambda each: each.row):
        if isinstance(entry, RowFailure):
            yield _failed_row(entry)
            continue
        there = [name for name in entry.files if (folder / name).exists()]
        for name in there:
            record = read_record(folder / name) or {}
            yield {"row": entry.row, "image": name, "prompt": entry.settings.prompt, "failed": None, **record}
        if not there:
            own = entry.settings
            none = RowFailure(entry.row, own.prompt, own.seed, "was not drawn: the run was interrupted")
            yield _failed_row(reasons.get((entry.row, own.seed), none))


def write_table(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write ``images.jsonl`` into the folder, in the place of a former one."""
    path = folder / TABLE
    with write_atomically(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    return path


def _failed_row(failure: RowFailure) -> dict[str, Any]:
    return {"row": failure.row, "image": None, "prompt": failure.prompt, "seed": failure.seed, "failed": failure.reason}


def _drawn(
    generator: ImageGenerator, batch: Sequence[PlannedImage], batch_size: int, candidates: Candidates | None
) -> list[list[GeneratedImage] | ValueError]:
    """Draw a batch; where it cannot be drawn, each of its images alone, so that a bad one costs itself."""
    try:
        if candidates:
            (image,) = batch
            return [generator.best_of(image.settings, candidates, batch_size=batch_size)]
        made = generator.batch([image.settings for image in batch])
        return [one if isinstance(one, ValueError) else [one] for one in made]
    except ValueError as error:
        if len(batch) == 1:
            return [error]
    return [one for image in batch for one in _drawn(generator, [image], batch_size, candidates)]


def _difference(
    image: PlannedImage, record: Mapping[str, Any] | None, candidates: Candidates | None, ranked_by: Collection[str]
) -> str:
    """Say how an image that is there was drawn otherwise than it is asked for; empty where it was not."""
    if record is None:
        return "and holds no settings"
    asked, found = json.loads(json.dumps(image.settings.record())), dict(record["settings"])
    choice = record.get("choice") or {}
    if candidates:
        if (choice.get("n"), choice.get("first_seed")) != (candidates.n, image.settings.seed):
            return f"chosen among {choice.get('n', 1)} candidates, now {candidates.n}"
        if {each.get("fingerprint") for each in choice.get("ranked_by", [])} != set(ranked_by):
            return "chosen by another CLIP or reward"
        found["seed"] = asked["seed"]
    elif choice and image.settings.particles == 1:
        return f"chosen among {choice.get('n')} candidates, now drawn alone"
    names = [name for name in {**asked, **found} if asked.get(name) != found.get(name)]
    return f"drawn with {names[0]} {found.get(names[0])!r:.40}, now {asked.get(names[0])!r:.40}" if names else ""
