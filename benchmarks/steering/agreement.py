"""Compare the guide's verdict on what it steered with the judge's.

    python benchmarks/steering/agreement.py \
        --data ../shared/data/emoji64-train.parquet --held_out ../shared/data/emoji64-val.parquet \
        --output benchmarks/steering/results

Reads the images that run.py has kept in ``work`` and draws none: methods that are not there are left out. If every
method takes the guide as far as it can be taken, and the judge agrees with it equally often, then the guide's knowledge
bounds them all, and no way of following its gradient can lead further.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from drawing import Cell, Method, load_cell
from judging import Naming, mean_interval
from methods import TABLES
from report import percent
from run import Program, Settings
from torch import Tensor

from clip_guidance.data.dataset import Row
from clip_guidance.training.settings import parse_settings

HEADER = (
    "method",
    "guide names it %",
    "judge names it %",
    "judge, of what the guide names %",
    "judge, where the guide names the real image %",
    "where it does not %",
)


def shares(guide: Tensor, judge: Tensor, knows: Tensor) -> tuple[str, ...]:
    """Return the numbers of one line.

    Args:
        guide: (n,), 1 where the guide calls what was drawn by its name.
        judge: (n,), 1 where the judge does.
        knows: (n,), 1 where the guide calls the real image by its name.
    """
    parts = (guide, judge, judge[guide == 1], judge[knows == 1], judge[knows == 0])
    return tuple(percent(mean_interval(part)) if len(part) else "" for part in parts)


def lines(cells: Sequence[tuple[str, Cell]], real: Cell, rows: Sequence[Row], guide: Naming, judge: Naming) -> str:
    """Return the table; the real images come first."""
    knows = guide(real.images, rows)
    table = [HEADER, ("---",) * len(HEADER)]
    for title, cell in (("real images", real), *cells):
        table.append((title, *shares(guide(cell.images, rows), judge(cell.images, rows), knows)))
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def drawn(program: Program, methods: Sequence[Method], name: str) -> list[tuple[str, Cell]]:
    """Load what is kept of these methods, whole cells alone."""
    root, items = Path(program.settings.work), program.items(name)
    paths = {method.title: program.drawer.paths(root, method, items) for method in methods}
    return [(title, load_cell(each)) for title, each in paths.items() if all(path.is_file() for path in each)]


def main(settings: Settings) -> None:
    program = Program(settings)
    if program.judge is None:
        return
    items = program.items("held-out")
    real, known = program.judge.real(items)
    rows = [program.held_out.rows[item.row] for item in known if item.row is not None]
    guide = Naming(program.drawer.clip, program.judge.names)
    cells = drawn(program, TABLES[settings.table or "main"](), "held-out")
    head = (
        f"# What the guide itself says\n\n{len(items)} held-out prompts; names: preferred to the other "
        f"{len(program.judge.names) - 1} names of all images, in the style that was asked for. In brackets 95 % "
        "intervals. Made by `agreement.py` of the images in the report beside this page."
    )
    output = Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "agreement.md").write_text(f"{head}\n\n{lines(cells, real, rows, guide, program.judge.naming)}\n")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(parse_settings(Settings))
