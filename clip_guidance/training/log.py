"""The log of a training run, one JSON object per line: written, read and plotted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


class Log:
    """A log that survives a kill: each row is one JSON object, appended and flushed.

    Args:
        path: Of the file; its folder is made.
        enabled: False writes nothing, as on all processes but one.
    """

    def __init__(self, path: str | Path, enabled: bool = True):
        self.path, self.enabled = Path(path), enabled
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **values: Any) -> None:
        if self.enabled:
            with self.path.open("a") as file:
                file.write(json.dumps({name: _finite(value) for name, value in values.items()}, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """Return null for a number that is not finite: JSON has none, and other programs would not read the line."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows of a log; of a step logged twice (before and after a resume) the later row.

    Args:
        path: Of a file that :class:`Log` wrote; a last line cut off by a kill is ignored.

    Returns:
        A dict per step and phase, in the order of their first rows.
    """
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for line in Path(path).read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # cut off by a kill
            continue
        rows[row.get("phase", ""), row["step"]] = rows.get((row.get("phase", ""), row["step"]), {}) | row
    return list(rows.values())


def plot_log(path: str | Path, output: str | Path) -> None:
    """Plot every number in the log against the step, one panel per name.

    Args:
        path: Of the log.
        output: Of the figure, in a format that matplotlib knows by its ending.
    """
    from matplotlib.figure import Figure

    rows = read_log(path)
    names = sorted({k for row in rows for k, v in row.items() if isinstance(v, int | float) and k != "step"})
    figure = Figure(figsize=(4 * len(names), 3), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for phase in {row.get("phase", "") for row in rows}:
            points = [(row["step"], row[name]) for row in rows if name in row and row.get("phase", "") == phase]
            if points:
                axis.plot(*zip(*points, strict=True), label=phase)
        axis.set(title=name, xlabel="step")
    figure.savefig(output)
