"""Search defaults of CLIP guidance, option by option, on prompts that the report never uses.

    torchrun --nproc_per_node 2 benchmarks/steering/tune.py --data ... --held_out ... \
        --output benchmarks/steering/tuning

Coordinate search: the scale first, then the first guided step, the cutouts and the cap, each at the best of those
before. Best is the one whose images the judge calls by the right name of all most often, if its kernel distance is
not above that of classifier-free guidance alone; the intervals of neighbours overlap: read the curve, not the winner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from drawing import Method
from matplotlib.figure import Figure
from report import Result, table
from run import Program, Settings

from clip_guidance.training.settings import parse_settings

ALONE = Method("CFG", "3")
FIRST = Method("CLIP guidance", "", scale=5.0)
GRID: dict[str, Sequence[float]] = {
    "scale": (2.5, 5.0, 10.0, 20.0, 40.0),
    "start": (0.0, 0.2, 0.4),
    "cutouts": (1, 4),
    "cap": (0.5, 1.0),
}


def variant(method: Method, option: str, value: float) -> Method:
    """Change one option of a method, and give it a name that tells all of them."""
    if option == "scale":
        method = replace(method, scale=value)
    else:
        method = replace(method, options={**method.options, option: value})
    options = {"scale": method.scale, **method.options}
    return replace(method, name=", ".join(f"{name} {value:g}" for name, value in options.items()))


def best(results: Sequence[Result], alone: Result) -> Result:
    """Choose the row most often named rightly, of those no farther from real images than CFG."""
    limit = alone.judgement.kernel_distance.estimate
    fair = [result for result in results if result.judgement.kernel_distance.estimate <= limit]
    return max(fair or results, key=named)


def named(result: Result) -> float:
    """Compute the share of images that the judge calls by the right name of all."""
    share = result.judgement.named
    if share is None:
        raise ValueError("expected prompts that name a real image")
    return share.estimate


def plot(curves: dict[str, list[tuple[float, Result]]], alone: Result, path: Path) -> None:
    """Share named rightly and kernel distance against each option."""
    figure = Figure(figsize=(4 * len(curves), 6), layout="constrained")
    axes = figure.subplots(2, len(curves), squeeze=False, sharey="row", sharex="col")
    for column, (option, curve) in enumerate(curves.items()):
        x = [value for value, _ in curve]
        for axis, of in zip(
            axes[:, column],
            (lambda result: result.judgement.named, lambda result: result.judgement.kernel_distance),
            strict=True,
        ):
            found, base = [of(result) for _, result in curve], of(alone)
            axis.plot(x, [each.estimate for each in found], marker="o")
            axis.fill_between(x, [each.low for each in found], [each.high for each in found], alpha=0.2)
            axis.axhline(base.estimate, color="gray", linestyle="--", label="CFG 3 alone")
        axes[1, column].set(xlabel=option)
        if option == "scale":
            axes[1, column].set_xscale("log")
            axes[1, column].set_xticks(x, [f"{value:g}" for value in x])
            axes[1, column].minorticks_off()
    axes[0, 0].set(ylabel="judge: right of all names")
    axes[1, 0].set(ylabel="kernel distance")
    axes[0, 0].legend()
    figure.savefig(path, dpi=110)


def main(settings: Settings) -> None:
    program, output = Program(settings), Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    items = program.items("tuning")

    def measure(method: Method) -> Result | None:
        cell = program.draw(method, items, f"tuning: {method.title}")
        return program.result(method, cell, items) if cell is not None else None

    alone, chosen = measure(ALONE), FIRST
    rows = [alone] if alone is not None else []
    curves: dict[str, list[tuple[float, Result]]] = {}
    for option, values in GRID.items():
        found = [measure(variant(chosen, option, value)) for value in values]
        picked = [0]  # known to the main process alone, until it is told
        if alone is not None:
            results = [result for result in found if result is not None]
            picked = [results.index(best(results, alone))]
            curves[option] = list(zip(values, results, strict=True))
            rows += results
            plot(curves, alone, output / "curves.png")
            head = f"{len(items)} tuning prompts, as `tune.py` went through them."
            (output / "tuning.md").write_text(f"{head}\n\n{table(rows)}\n\n![curves](curves.png)\n")
        program.share(picked)
        better = variant(chosen, option, values[picked[0]])
        if option != "cap":
            chosen = better


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(parse_settings(Settings))
