"""What ``clip-guidance score`` prints: rows or the means of those that a file holds, and marks of doubtful scores."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_guidance.cli import _common as common

if TYPE_CHECKING:
    from clip_guidance.metrics.job.judge import Judge
    from clip_guidance.metrics.job.run import Job
    from clip_guidance.metrics.job.store import ScoreStore

SHOWN = 200  # rows of the table on a terminal


def print_scores(work: Job, judges: list[Judge], output: Path | None, json: bool, job: common.Job) -> int:
    """Print the rows and the means of all processes; where a file holds the rows, the means alone.

    Returns:
        The number of items that have scores.
    """
    import torch

    from clip_guidance.metrics.job.store import ScoreStore

    summaries = []
    with ScoreStore(work.base) as base:
        for definition in (definition for judge in judges for definition in judge.definitions):
            summary = base.summary(definition.id)
            mean = None
            if summary.count:  # of one number, the mean is that number, clipped where the definition says so
                mean = definition.score.mean(torch.tensor([summary.arithmetic_mean], dtype=torch.float64))
            summaries.append((summary, mean))
        means = [{**s.record, "mean": mean, "count": s.count} for s, mean in summaries]
        job.failures = [{"path": failure.image, "reason": failure.reason} for failure in base.failures()]
        if json:
            _print_json(base, means, job.failures)
        elif output:
            rows = [(one["definition"], one["model"], one["mean"], one["count"]) for one in means if one["count"]]
            common.print_table(["definition", "model", "mean", "count"], rows)
        else:
            _print_table(base, len(means) > 1)
        scored = base.scored()
    for summary, mean in summaries:
        if mean is not None and (json or not output):
            by = f"{summary.record['definition']} by {summary.record['model']}"
            common.narrate("mean", f"{mean:.4f} ({by}, n = {summary.count})")
    _narrate_marks([summary for summary, _ in summaries])
    return scored


def _print_json(base: ScoreStore, means: list[dict[str, Any]], failures: list[dict[str, str]]) -> None:
    """Print one document, whose rows are printed as they are read."""
    head: dict[str, Any] = {"scores": means}
    if len(means) == 1:
        record = {key: value for key, value in means[0].items() if key not in ("mean", "count")}
        head = {"definition": record, "mean": means[0]["mean"]}
    print(common.as_json(head, indent=2)[:-2] + ',\n  "results": [', end="")
    separator = "\n"
    for row, record in base.rows():
        own = {key: value for key, value in vars(row).items() if key not in ("record", "position")}
        names = {"definition": record["definition"], "model": record["model"]}
        print(separator + "    " + common.as_json({**own, **names}), end="")
        separator = ",\n"
    print('\n  ],\n  "failed": ' + common.as_json(failures) + "\n}")


def _print_table(base: ScoreStore, several: bool) -> None:
    """Print all rows for other programs, those that failed behind the others; the first ones on a terminal."""
    columns = ["image", "prompt", "score", *(["definition", "model"] if several else [])]
    rows = (
        (row.image, row.prompt, row.score, *((record["definition"], record["model"]) if several else ()))
        for row, record in base.rows()
    )
    if sys.stdout.isatty():
        common.print_table(columns, list(itertools.islice(rows, SHOWN)))
        if left := sum(1 for _ in rows):
            common.narrate("note", f"{left} more rows are not shown; --output keeps them")
        return
    blank = [""] * (len(columns) - 1)
    scored = ([*row, ""] for row in rows)
    failed: Iterator[list[Any]] = ([failure.image, *blank, failure.reason] for failure in base.failures())
    common.print_lines(itertools.chain([[*columns, "error"]], scored, failed))


def _narrate_marks(summaries: list[Any]) -> None:
    """Warn about scores by the CLIP or reward that guided an image, and about texts that were cut."""
    guided = {s.record["model"]: s for s in summaries if s.guided}
    for name, summary in guided.items():
        which = f" ({name})" if len({s.record["model"] for s in summaries}) > 1 else ""
        common.narrate(
            "warning",
            f"{summary.guided} of {summary.count} images were guided or chosen by the very model that scores them"
            f"{which}, which flatters them; choose another --model or --reward",
        )
    if truncated := sum(summary.truncated for summary in summaries):
        total = sum(summary.count for summary in summaries)
        common.narrate("note", f"{truncated} of {total} scores are of a text that was cut (column truncated)")
