"""The progress of a training: a bar on a terminal, elsewhere a line per row of the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """The progress of a loop, on standard error; used as a context manager.

    Args:
        label: What is done.
        start: Steps done before.
        total: Steps to do in all.
        batch_size: Samples per step; with 0 the speed is shown in steps per second.
        enabled: False shows nothing, as on all processes but one.
        console: Where to show; for tests.
        clock: Returns seconds; for tests.
    """

    def __init__(
        self,
        label: str,
        start: int,
        total: int,
        batch_size: int = 0,
        enabled: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.label, self.done, self.total, self.enabled, self.clock = label, start, total, enabled, clock
        self.factor, self.unit = (batch_size, "samples") if batch_size else (1, "steps")
        self.console = console or Console(stderr=True)
        text, values = TextColumn("{task.description}"), TextColumn("{task.fields[values]}")
        columns = (text, BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(), values)
        self.bar = Bar(*columns, console=self.console, disable=not (enabled and self.console.is_terminal))
        self.task = self.bar.add_task(label, total=total, completed=start, values="")
        self.shown_step, self.shown_time = start, clock()

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def advance(self) -> None:
        """Count one more step."""
        self.done += 1
        self.bar.update(self.task, completed=self.done)

    def show(self, values: Mapping[str, float]) -> None:
        """Show these values, and the speed since values were last shown."""
        now = self.clock()
        speed = self.factor * (self.done - self.shown_step) / max(now - self.shown_time, 1e-9)
        self.shown_step, self.shown_time = self.done, now
        shown = [*(f"{name} {value:.4g}" for name, value in values.items()), f"{speed:.4g} {self.unit}/s"]
        if not self.bar.disable:
            self.bar.update(self.task, values="  ".join(shown))
        elif self.enabled:
            line = "  ".join([f"{self.label} {self.done}/{self.total}".strip(), *shown])
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
