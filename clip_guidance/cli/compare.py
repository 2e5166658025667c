"""``clip-guidance compare``: which of two runs scores higher, prompt by prompt, and how sure is that?"""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clip_guidance.cli import _options as common

if TYPE_CHECKING:
    from clip_guidance.metrics.comparison import PairedComparison


class On(str, Enum):
    """What makes a pair."""

    prompt = "prompt"
    image = "image"


Scores = Annotated[Path, typer.Argument(help="Scores: .jsonl, .csv or .parquet.", show_default=False)]


def command(
    a: Scores,
    b: Scores,
    on: Annotated[
        On, typer.Option(help="What is paired: prompts, over whose images is averaged, or images by file name.")
    ] = On.prompt,
    definition: Annotated[
        str | None, typer.Option(help="The score to compare, where the files hold several.", show_default=False)
    ] = None,
    model: Annotated[str | None, typer.Option(help="Its judge, by the name it has in A.", show_default=False)] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")] = 10_000,
    probability: Annotated[float, typer.Option(help="Of the intervals, between 0 and 1.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    report: common.Report = None,
    json: common.Json = False,
) -> None:
    """Compare the scores of two runs, pair by pair, with bootstrap intervals.

    Takes what score --output writes; refuses scores of different definitions or judges.

    Example: clip-guidance compare plain.jsonl guided.jsonl
    """
    from clip_guidance.metrics.comparison import compare_scores
    from clip_guidance.metrics.job.output import is_torn
    from clip_guidance.metrics.job.results import find_comparable, read_scores

    for path in (a, b):
        if path.is_file() and is_torn(path):
            common.narrate("warning", f"{path}: its last line was cut short and is left out")
    first, second = find_comparable(read_scores(a), read_scores(b), definition, model)
    job = common.Job()
    for file in (first, second):
        for problem in file.skipped:
            job.fail(str(file.path), problem)
    found = compare_scores(first.scores(on.value), second.scores(on.value), resamples, probability, seed)
    for path, other, keys in ((a, b, found.only_a), (b, a, found.only_b)):
        for key in keys:
            job.fail(str(path), f"{' | '.join(_cells(key))}: is not in {other}")

    pairs = zip(found.keys, found.a.tolist(), found.b.tolist(), found.differences.tolist(), strict=True)
    rows = [(*_cells(key), *numbers) for key, *numbers in sorted(pairs, key=lambda pair: -pair[3])]
    columns = [*(("prompt",) if on is On.prompt else ("image", "prompt")), "a", "b", "difference"]
    if json:
        files = {"a": str(a), "b": str(b), "definition": first.record, "on": on.value, "pairs": len(rows)}
        intervals = {"difference": asdict(found.difference), "win_rate": asdict(found.win_rate)}
        bootstrap = {"resamples": resamples, "probability": probability, "seed": seed}
        results = [dict(zip(columns, row, strict=True)) for row in rows]
        common.print_json({**files, **intervals, **bootstrap, "results": results, "failed": job.failures})
    else:
        common.print_table(columns, rows)
    _narrate(found, f"{100 * probability:g} % interval")
    if report is not None:
        from clip_guidance.report import comparison

        common.save_report(comparison(found, facts={"a": str(a), "b": str(b), **first.record}), report)
    job.finish()


def _narrate(found: PairedComparison, interval: str) -> None:
    d, w = found.difference, found.win_rate
    common.narrate("difference", f"b - a = {d.estimate:+.4f} ({interval} {d.low:+.4f} to {d.high:+.4f})")
    common.narrate(
        "win rate",
        f"b is higher in {100 * w.estimate:.1f} % of {len(found.keys)} pairs "
        f"({interval} {100 * w.low:.1f} to {100 * w.high:.1f} %; a tie is half a win)",
    )


def _cells(key: Any) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else key
