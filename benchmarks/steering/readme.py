"""Puts the steering benchmark's table into a page, between its markers.

    python benchmarks/steering/readme.py benchmarks/steering/results/report.json docs/results/steering.md

The rows are the held-out pairs of the report, whole. What the numbers mean to a reader is written by hand around them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- steering: begin -->", "<!-- steering: end -->"
HEADER = ("method", "judge top-1 %", "of all names %", "judge rank", "kernel distance", "recall", "s / image")


def percent(share: dict[str, float]) -> str:
    return f"{100 * share['estimate']:.1f} ({100 * share['low']:.0f}–{100 * share['high']:.0f})"


def row(result: dict[str, Any]) -> str:
    """One line of the table from one entry of ``report.json``."""
    top1, distance, seconds = result["top1"], result["kernel_distance"], result["cost"].get("seconds")
    cells = (
        result["title"],
        percent(top1),
        percent(result["named"]) if result["named"] else "",
        f"{result['rank']:.1f}",
        f"{distance['estimate']:.3f} ({distance['low']:.3f}–{distance['high']:.3f})",
        f"{result['recall']:.2f}",
        "" if seconds is None else f"{seconds:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


def block(report: dict[str, Any], name: str = "held-out") -> str:
    """Return the table of one prompt set, with its markers."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER), *map(row, report[name])]
    count = report[name][0]["count"]
    return "\n".join([BEGIN, f"{count} prompts per row:", "", *lines, END])


def filled(page: str, report: dict[str, Any]) -> str:
    """``page`` with the table of ``report`` between its markers.

    Raises:
        ValueError: the page has not exactly one pair of markers.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"expected one {BEGIN} and one {END}, got {page.count(BEGIN)} and {page.count(END)}")
    before, rest = page.split(BEGIN)
    return before + block(report) + rest.split(END)[1]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    page = Path(sys.argv[2])
    page.write_text(filled(page.read_text(), json.loads(Path(sys.argv[1]).read_text())))
