"""What the command line says on stderr: warnings, failures, progress, and how much of it -q and -v ask for."""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

stderr = Console(stderr=True, highlight=False, soft_wrap=True)
# What a terminal obeys instead of showing: C0 and C1 controls, line separators, marks that reorder text; and lone
# surrogates, which stand for the bytes of a file name that are no UTF-8.
OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_STYLES = {"error": "bold red", "failed": "red", "warning": "yellow", "interrupted": "yellow"}
# What --quiet keeps: losses, and the results that stand on stderr because stdout holds rows.
_KEPT = {*_STYLES, "skipped", "mean", "difference", "win rate", "page"}
_SHARE, _SECONDS, _LEAST_SECONDS = 0.05, 30.0, 2.0  # from one line of progress to the next


@dataclass
class Volume:
    """How much is said; :func:`narrated_logs` sets it back after each run.

    Attributes:
        quiet: Only losses and results.
        verbose: Also what libraries log.
    """

    quiet: bool = False
    verbose: bool = False


volume = Volume()


def be_quiet(value: bool) -> None:
    """Follow ``--quiet``."""
    volume.quiet |= value
    _check_volume()


def be_verbose(value: bool) -> None:
    """Follow ``--verbose``: narrate what every library logs, and each warning."""
    if value and not volume.verbose:
        logging.getLogger("clip_guidance").removeHandler(_HANDLER)  # the root logger hears the package too
        _HANDLER.setLevel(logging.INFO)
        logging.getLogger().addHandler(_HANDLER)
        logging.getLogger().setLevel(logging.INFO)
        warnings.simplefilter("default")
        volume.verbose = True
    _check_volume()


def _check_volume() -> None:
    if volume.quiet and volume.verbose:
        raise typer.BadParameter("give --quiet or --verbose")


@contextmanager
def narrated_logs() -> Iterator[None]:
    """Narrate warnings and the package's log, within the block; with ``--verbose`` the logs of libraries too."""
    package, root = logging.getLogger("clip_guidance"), logging.getLogger()
    level = root.level
    _HANDLER.setLevel(logging.WARNING)
    package.addHandler(_HANDLER)  # it stays after the block: other threads may still log
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _warn_once()
        try:
            yield
        finally:
            volume.quiet = volume.verbose = False
            root.removeHandler(_HANDLER)
            root.setLevel(level)
            _HANDLER.setLevel(logging.WARNING)
            package.addHandler(_HANDLER)


def narrate(kind: str, message: str) -> None:
    """Print one line on stderr, such as ``failed: a.png: is empty (0 bytes)``."""
    if volume.quiet and kind not in _KEPT:
        return
    style = _STYLES.get(kind, "cyan")
    stderr.print(f"[{style}]{kind}:[/] {escape(printable(' '.join(message.split())))}")


def narrate_end(done: int, failed: int, total: int) -> None:
    """Print the last line of a run, such as ``4,997 of 5,000 done, 3 failed``."""
    if not volume.quiet or done < total:
        stderr.print(f"{done:,} of {total:,} done" + (f", {failed:,} failed" if failed else ""))


def printable(text: str, keep: str = "") -> str:
    r"""Escape what a terminal would obey, such as a sequence in a file name that clears the screen.

    Args:
        text: What somebody wrote: the name of a file, a caption, a prompt.
        keep: Characters that are left as they are.

    Example:
        >>> from clip_guidance.cli._narration import printable
        >>> print(printable("\x1b[2Jcat.png"))
        \x1b[2Jcat.png
    """
    return OBEYED.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


class LogNarrator(logging.Handler):
    """Narrate what is logged, as everything else that goes to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        narrate(record.levelname.lower(), record.getMessage())
        if record.exc_info:  # of a defect, which the traceback alone tells in full
            stderr.print(escape(printable(logging.Formatter().formatException(record.exc_info), keep="\n")))


_HANDLER = LogNarrator(logging.WARNING)


def _warn_once() -> Callable[..., None]:
    """Make a ``warnings.showwarning`` that prints no source lines and no message twice in a run."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            narrate("warning", str(message))

    return show


class LoggedProgress:
    """Tell the progress of a task in a log: a line per 5 % that are done, or per 30 seconds.

    A task that is done within two seconds leaves no line. Of several processes the first one tells its own share.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock

    def __enter__(self) -> LoggedProgress:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        pass

    def add_task(self, what: str, total: float | None = None) -> TaskID:
        """Begin the task; without a total, only time makes lines."""
        self._what, self._total, self._done = what, total, 0.0
        self._begun = self._told_at = self._clock()
        self._told = 0.0
        return cast("TaskID", 0)

    def advance(self, task: TaskID, advance: float = 1) -> None:
        """Count what was done, and tell it where it is time to."""
        self._done += advance
        if self._total is not None and self._done >= self._total:
            return  # the last line of the run says so
        since = self._clock() - self._told_at
        far = self._total is not None and self._done - self._told >= _SHARE * self._total
        if (far and since >= _LEAST_SECONDS) or since >= _SECONDS:
            self._told_at, self._told = self._clock(), self._done
            self._tell()

    def _tell(self) -> None:
        if os.environ.get("RANK", "0") != "0":
            return
        if self._total is None:
            narrate("progress", f"{self._done:,.0f} {self._what}")
            return
        seconds = (self._told_at - self._begun) * (self._total - self._done) / self._done
        of = f"{self._done:,.0f} of {self._total:,.0f} {self._what}"
        narrate("progress", f"{of} ({self._done / self._total:.0%}, {timedelta(seconds=round(seconds))} left)")


def progress() -> Progress | LoggedProgress:
    """Make a progress bar on stderr; where that is no terminal, lines from time to time."""
    if volume.quiet or not stderr.is_terminal:
        return LoggedProgress()
    from rich.progress import Progress

    return Progress(console=stderr, transient=True)
