"""Tables and the plot, written anew after every cell: an interruption keeps what is done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drawing import Cell, Method
from judging import Judgement, mean_interval
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from clip_guidance.metrics.statistics import Interval

HEADER = (
    "method",
    "judge top-1 %",
    "of all names %",
    "judge rank",
    "kernel distance",
    "precision",
    "recall",
    "nearest",
    "copied %",
    "denoiser / decoder / CLIP",
    "CPU s / image",
    "MiB",
    "guide cos (no evidence)",
)
TICKS = [digit * 10.0**power for power in range(-3, 4) for digit in (1, 2, 5)]  # of the plot, seconds


@dataclass(frozen=True)
class Result:
    """One row; ``method`` None for the real images."""

    method: Method | None
    judgement: Judgement
    cost: dict[str, float]  # of one image

    @property
    def title(self) -> str:
        return self.method.title if self.method else "real images"


def percent(share: Interval) -> str:
    return f"{100 * share.estimate:.1f} ({100 * share.low:.1f}–{100 * share.high:.1f})"


def row(result: Result) -> tuple[str, ...]:
    """Return the cells of one line of the table."""
    said, cost = result.judgement, result.cost
    top1, distance = said.top1, said.kernel_distance
    counts = " / ".join(f"{cost[name]:.0f}" for name in ("denoiser", "decoder", "clip")) if cost else ""
    return (
        result.title,
        percent(top1),
        percent(said.named) if said.named else "",
        f"{said.rank:.1f}",
        f"{distance.estimate:.3f} ({distance.low:.3f}–{distance.high:.3f})",
        f"{said.precision:.2f}",
        f"{said.recall:.2f}",
        f"{said.nearest:.3f}",
        f"{100 * said.copied:.1f}",
        counts,
        f"{cost['seconds']:.2f}" if cost else "",
        f"{cost['mebibytes']:.0f}" if "mebibytes" in cost else "",
        f"{said.guide:.3f}" if said.guide is not None else "",
    )


def table(results: Sequence[Result]) -> str:
    lines = [HEADER, ("---",) * len(HEADER), *map(row, results)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def duels(results: Sequence[Result], budget: Sequence[str]) -> str:
    """Each method beside ours at no more seconds: paired differences of top-1.

    Args:
        results: rows of one prompt set.
        budget: titles of our own rows, from the cheapest to the dearest, one for each price. They are named before
            anything is drawn, so that none is chosen on the images that are compared.
    """
    drawn = [result for result in results if result.method and result.method.use_prompt]
    ours = sorted((result for result in drawn if result.title in budget), key=lambda one: budget.index(one.title))
    head = ("against", "s", "ours", "s", "top-1 gained, points", "of all names", "kernel distance gained")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for other in drawn:
        affordable = [one for one in ours if one.cost["seconds"] <= 1.05 * other.cost["seconds"]]
        if other in ours or not affordable:
            continue
        one = affordable[-1]
        closer = one.judgement.kernel_distance.estimate - other.judgement.kernel_distance.estimate
        lines.append(
            f"| {other.title} | {other.cost['seconds']:.2f} | {one.title} | {one.cost['seconds']:.2f} | "
            f"{gained(one.judgement.right, other.judgement.right)} | "
            f"{gained(one.judgement.named_right, other.judgement.named_right)} | {closer:+.3f} |"
        )
    return "\n".join(lines)


def gained(ours: Tensor | None, others: Tensor | None) -> str:
    """Compute the points between verdicts (n,) of the same prompts, with their paired interval."""
    if ours is None or others is None:
        return ""
    gain = mean_interval(ours - others)
    return f"{100 * gain.estimate:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"


def plot(results: Sequence[Result], path: Path, families: Sequence[str]) -> None:
    """Plot alignment against seconds and against the distance to real images; up left is better.

    Alignment is the judge's choice of all names, where the prompts have one: it tells methods apart that its choice
    among a hundred texts does not.
    """
    is_named = all(result.judgement.named for result in results)
    figure = Figure(figsize=(12, 5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    styles = {family: (f"C{i % 10}", "osD^vP*X<>"[i // 10 % 10 if i < 10 else 1]) for i, family in enumerate(families)}
    for family in families:
        chosen = [result for result in results if result.method and result.method.family == family]
        colour, marker = styles[family]
        for axis, x_of in zip(axes, (_seconds, _distance), strict=True):
            chosen.sort(key=x_of)
            tops = [(is_named and one.judgement.named) or one.judgement.top1 for one in chosen]
            y, low, high = ([100 * getattr(top, name) for top in tops] for name in ("estimate", "low", "high"))
            spread = [[a - b for a, b in zip(y, low, strict=True)], [a - b for a, b in zip(high, y, strict=True)]]
            x = [x_of(one) for one in chosen]
            axis.errorbar(x, y, yerr=spread, color=colour, marker=marker, markersize=5, elinewidth=0.6, label=family)
    seconds = [_seconds(result) for result in results if result.method]
    ticks = [tick for tick in TICKS if min(seconds, default=0) / 2 < tick < 2 * max(seconds, default=0)]
    ylabel = "judge: right of all names, %" if is_named else "judge top-1, %"
    axes[0].set(xlabel="CPU seconds an image", ylabel=ylabel, xscale="log")
    axes[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[0].minorticks_off()
    axes[1].set(xlabel="kernel distance to real images")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=110)


def _seconds(result: Result) -> float:
    return result.cost["seconds"]


def _distance(result: Result) -> float:
    return result.judgement.kernel_distance.estimate


def contact_sheet(cell: Cell, columns: int = 20, rows: int = 5) -> Image.Image:
    """Return the first images of a cell, to be looked at."""
    images = cell.images[: columns * rows].permute(0, 2, 3, 1).numpy()
    height, width = images.shape[1:3]
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for i, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (i % columns * width, i // columns * height))
    return sheet


def to_json(result: Result) -> dict[str, Any]:
    """Everything but the single verdicts."""
    said = asdict(result.judgement)
    for verdicts in ("right", "named_right"):
        said.pop(verdicts)
    return {"title": result.title, "method": repr(result.method), "cost": result.cost, **said}


def write(results: dict[str, list[Result]], preamble: str, budget: Sequence[str], output: Path) -> None:
    """``report.md``, ``report.json`` and a plot of every prompt set, in the folder ``output``.

    Args:
        budget: as for :func:`duels`.
    """
    parts = [preamble]
    for name, rows in results.items():
        parts += [f"## {name}", table(rows)]
        drawn = [result for result in rows if result.method]
        if any(result.title in budget for result in drawn):
            head = "Against our default at as many seconds, at most 1.05 times (`BUDGET` of methods.py, in that order):"
            parts += [head, duels(rows, budget)]
        families = list(dict.fromkeys(result.method.family for result in drawn if result.method))
        plot(rows, output / f"{name}.png", families)
        parts.append(f"![Alignment against cost and quality]({name}.png)")
    (output / "report.md").write_text("\n\n".join(parts) + "\n")
    as_json = {name: [to_json(result) for result in rows] for name, rows in results.items()}
    (output / "report.json").write_text(json.dumps(as_json, indent=1) + "\n")
