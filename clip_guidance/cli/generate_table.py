"""``clip-guidance generate --prompts-file``: images of a file of prompts, resumed and shared among processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_guidance._tuned import TunedPair
from clip_guidance.cli import _common as common
from clip_guidance.generation.candidates import Candidates
from clip_guidance.generation.settings import GenerateSettings

if TYPE_CHECKING:
    from clip_guidance.generation.generator import ImageGenerator
    from clip_guidance.generation.table import RowFailure, TablePlan
    from clip_guidance.metrics.job.processes import Processes

SHOWN = 20  # failures that are named on stderr; the table names all


@dataclass(frozen=True)
class TableWork:
    """Hold what is asked for.

    Attributes:
        path: The file of prompts.
        folder: Where the images go, and the table of them.
        given: Settings of all images.
        num_images: Images per row.
        candidates: What each image is chosen among; None for itself.
        batch_size: Images, or candidates of an image, that are drawn together.
        processes: The processes that share the rows.
        pair: Models and settings that ``tune`` measured; None for others.
    """

    path: Path
    folder: Path
    given: dict[str, Any]
    num_images: int
    candidates: Candidates | None
    batch_size: int
    processes: Processes
    pair: TunedPair | None


def generate_table(work: TableWork, job: common.Job) -> list[dict[str, Any]]:
    """Draw the images of the rows, and write ``images.jsonl`` in the first process.

    Returns:
        The images that are there, with their records; of other processes than the first, none.

    Raises:
        ValueError: No row can be drawn as it is asked for, or the folder holds other images.
        OSError: An image cannot be written, or another process ended early or vanished.
    """
    from clip_guidance.generation.prompts import read_prompts
    from clip_guidance.generation.table import TABLE, plan_images, table_rows, write_table

    plan = plan_images(read_prompts(work.path), work.given, work.num_images, work.candidates)
    if not work.processes.rank:
        _name(plan.failures, work, job)
    refusal = ValueError(f"--output {work.folder}: another run is drawing into it")
    with work.processes.locked(work.folder / f"{TABLE}.lock", refusal):
        failures = [*plan.failures, *(_drawn_failures(plan, work, job) if plan.images else ())]
        if work.processes.count > 1 and not job.interrupted:  # else another process may not come to this
            failures = [failure for of_process in work.processes.gather(failures) for failure in of_process]
        if work.processes.rank or (work.processes.count > 1 and job.interrupted):
            return []
        rows = list(table_rows(plan, work.folder, failures))
        common.narrate("table", str(write_table(work.folder, rows)))
    images = [{**row, "image": str(work.folder / row["image"])} for row in rows if row["image"]]
    _close(plan, rows, work, job)
    return images


def _drawn_failures(plan: TablePlan, work: TableWork, job: common.Job) -> list[RowFailure]:
    """Draw this process's share, until Ctrl-C; return what failed."""
    common.quiet("transformers", "diffusers")  # in this order: importing diffusers makes transformers print advice
    from clip_guidance.generation.generator import ImageGenerator
    from clip_guidance.generation.table import draw_images, find_done

    candidates, processes = work.candidates, work.processes
    generator = ImageGenerator(common.resolve_device(processes.device))
    _load(generator, work, plan)
    first = plan.images[0].settings
    ranked_by = generator.ranked_by(first, candidates.rank_by) if candidates else ()
    done = find_done(plan, work.folder, candidates, ranked_by)
    if done and not processes.rank:
        common.narrate("note", f"{len(done):,} of {len(plan.images):,} images are there already")
    failures: list[RowFailure] = []
    options = (work.batch_size, candidates, processes.rank, processes.count)
    with job, common.progress() as bar:
        task = bar.add_task("images", total=(len(plan.images) - len(done)) / processes.count)
        for progress in draw_images(plan, done, generator, work.folder, *options):
            bar.advance(task, progress.images)
            failures += progress.failures
            _name(progress.failures, work, job)
    return failures


def _load(generator: ImageGenerator, work: TableWork, plan: TablePlan) -> None:
    """Load the models, which all rows share, and say which prompts they never read.

    Raises:
        ValueError: A model is unknown, or what holds for all rows does not fit it.
    """
    from clip_guidance.clip.domain import foreign_prompts

    shared = GenerateSettings("unset").overridden(work.given)
    generator.load(shared)
    if work.pair is not None:
        generator.check_tuned(work.pair, shared)
    prompts = dict.fromkeys(image.settings.prompt for image in plan.images)
    if not work.processes.rank and (message := foreign_prompts(shared.model, list(prompts))):
        common.narrate("warning", message)


def _name(failures: list[RowFailure], work: TableWork, job: common.Job) -> None:
    """Name the first failures; the table has all."""
    for failure in failures:
        name = f"{work.path}: row {failure.row}"
        if len(job.failures) < SHOWN:
            job.fail(name, failure.reason)
        else:
            job.failures.append({"path": name, "reason": failure.reason})


def _close(plan: TablePlan, rows: list[dict[str, Any]], work: TableWork, job: common.Job) -> None:
    """Say how many images of how many are there."""
    failed = [row for row in rows if row["image"] is None]
    job.failures = [{"path": f"{work.path}: row {row['row']}", "reason": row["failed"]} for row in failed]
    if (left := len(failed) - SHOWN) > 0 and not job.interrupted:
        common.narrate("note", f"{left:,} more failures are named in the table")
    total = len(plan.images) + len(plan.failures) * work.num_images
    lost = len(failed) + len(plan.failures) * (work.num_images - 1)
    what = "left" if job.interrupted else "failed"
    common.narrate("images", f"{total - lost:,} of {total:,} done, {lost:,} {what}")
