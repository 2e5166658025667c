"""``clip-guidance compare``: which of two runs scores higher, and how certain is it?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_guidance.cli import _common as common
from clip_guidance.cli import _options as options

if TYPE_CHECKING:
    from clip_guidance.metrics.comparison import PairedComparison
    from clip_guidance.metrics.job.results import ScoreSet


def command(
    a: options.ScoresArgument,
    b: options.ScoresArgument,
    on: options.Pairing = options.On.prompt,
    definition: options.OneDefinition = None,
    model: options.OneModel = None,
    resamples: options.Resamples = 10_000,
    probability: options.Probability = 0.95,
    seed: options.ResampleSeed = 0,
    report: options.Report = None,
    json: options.Json = False,
) -> None:
    """Compare the scores of two runs, pair by pair, with bootstrap intervals.

    Both files come from score --output; scores of different definitions or models are not compared.

    Example: clip-guidance compare plain.jsonl guided.jsonl
    """
    from clip_guidance.metrics.comparison import compare_scores

    job = common.Job()
    first, second = _read(a, b, definition, model, job)
    found = compare_scores(first.scores(on.value), second.scores(on.value), resamples, probability, seed)
    for path, other, keys in ((a, b, found.only_a), (b, a, found.only_b)):
        job.fail_alike(str(path), [f"{' | '.join(_cells(key))}: is not in {other}" for key in keys])
    facts = {"a": str(a), "b": str(b), "definition": first.record, "on": on.value}
    bootstrap = {"resamples": resamples, "probability": probability, "seed": seed}
    _print(found, facts, bootstrap, json, job)
    _narrate(found, f"{100 * probability:g} % interval")
    if report is not None:
        _save_report(found, {"a": str(a), "b": str(b), **first.record}, report)
    job.finish()


def _read(a: Path, b: Path, definition: str | None, model: str | None, job: common.Job) -> tuple[ScoreSet, ScoreSet]:
    """Read the comparable scores of both files; rows that cannot be read fail by name."""
    from clip_guidance.metrics.job.output import is_torn
    from clip_guidance.metrics.job.results import find_comparable, read_scores

    for path in (a, b):
        if path.is_file() and is_torn(path):
            common.narrate("warning", f"{path}: its last line was cut short and is left out")
    first, second = find_comparable(read_scores(a), read_scores(b), definition, model)
    for file in (first, second):
        job.fail_alike(str(file.path), file.skipped)
    return first, second


def _print(
    found: PairedComparison, facts: dict[str, Any], bootstrap: dict[str, Any], json: bool, job: common.Job
) -> None:
    """Print the pairs in descending order of b - a."""
    pairs = zip(found.keys, found.a.tolist(), found.b.tolist(), found.differences.tolist(), strict=True)
    rows = [(*_cells(key), *numbers) for key, *numbers in sorted(pairs, key=lambda pair: -pair[3])]
    keys = ["prompt"] if facts["on"] == options.On.prompt.value else ["image", "prompt"]
    columns = [*keys, "a", "b", "difference"]
    if json:
        intervals = {"difference": asdict(found.difference), "win_rate": asdict(found.win_rate)}
        results = [dict(zip(columns, row, strict=True)) for row in rows]
        document = {**facts, "pairs": len(rows), **intervals, **bootstrap}
        common.print_json({**document, "results": results, "failed": job.failures})
    else:
        common.print_table(columns, rows)


def _save_report(found: PairedComparison, facts: dict[str, Any], report: Path) -> None:
    from clip_guidance.report import comparison

    common.save_report(comparison(found, facts=facts), report)


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
