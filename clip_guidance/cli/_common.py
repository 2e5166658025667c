"""What the subcommands share: loading the CLIP, failed inputs, exit codes, and printing."""

from __future__ import annotations

import csv
import gc
import importlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clip_guidance.cli._narration import OBEYED, narrate_end, printable, volume
from clip_guidance.cli._narration import narrate as narrate
from clip_guidance.cli._narration import progress as progress

if TYPE_CHECKING:
    from clip_guidance.clip import CLIP, DualEncoder
    from clip_guidance.clip.embed_cache import EncodedBatch
    from clip_guidance.report.html.page import Page
    from clip_guidance.rewards import PromptReward

_SHOWN = 5  # failures of one kind that are named, where all of them would bury the rest


class Job:
    """Run over many inputs: name each one that failed and end with the right exit code.

    As a context manager it catches Ctrl-C, so that what was done so far can still be printed.
    """

    def __init__(self) -> None:
        self.failures: list[dict[str, str]] = []
        self.interrupted = False

    def __enter__(self) -> Job:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        self.interrupted = kind is KeyboardInterrupt
        return self.interrupted

    def fail(self, name: str, reason: str) -> None:
        """Record and name one input that failed."""
        self.failures.append({"path": name, "reason": reason})
        narrate("failed", f"{name}: {reason}")

    def fail_alike(self, name: str, reasons: Sequence[str]) -> None:
        """Record failures of one kind and one input; name the first of them, and count the others."""
        for reason in reasons[:_SHOWN]:
            self.fail(name, reason)
        self.failures += [{"path": name, "reason": reason} for reason in reasons[_SHOWN:]]
        if (left := len(reasons) - _SHOWN) > 0:
            narrate("failed", f"{name}: {left} more like these, {len(reasons)} in all; --json lists every one")

    def encoded(self, clip: DualEncoder, paths: Sequence[Path], batch_size: int) -> Iterator[EncodedBatch]:
        """Yield the embeddings of the readable images in batches; the other images fail by name.

        At the end images of a kind that the CLIP does not know are told.
        """
        from clip_guidance.clip.domain import DomainCheck
        from clip_guidance.clip.embed_cache import encode_files

        domain = DomainCheck(clip)
        with progress() as bar:
            task = bar.add_task("images", total=len(paths))
            for batch in encode_files(clip, paths, batch_size):
                for skipped in batch.skipped:
                    self.fail(skipped.path, skipped.reason)
                bar.advance(task, len(batch.names) + len(batch.skipped))
                if batch.names:
                    domain.add(batch.embeds)
                    yield batch
        domain.warn()

    def finish(self, done: int | None = None, total: int | None = None) -> None:
        """End the command with exit code 0, 1 or 130.

        Args:
            done: Number of inputs that did not fail, for the last line; None for no such line.
            total: Number of all inputs; by default those done and those failed.
        """
        if done is not None:
            failed = len(self.failures)
            narrate_end(done, failed, done + failed if total is None else total)
        raise typer.Exit(130 if self.interrupted else 1 if self.failures else 0)


def load_clip(name: str, device: str | None) -> DualEncoder:
    """Load the CLIP of this name onto the device.

    Raises:
        ValueError: There is no such model or device.
    """
    with _no_collection():
        quiet("transformers")
        from clip_guidance.clip import CLIP

        return CLIP.from_pretrained(name).to(resolve_device(device))


def load_reward(name: str, device: str | None, prompt: str | None = None) -> PromptReward:
    """Load the reward of this name onto the device.

    Raises:
        ValueError: There is no such reward or device.
    """
    with _no_collection():
        quiet("transformers")
        from clip_guidance.rewards import load_reward

        return load_reward(name, prompt, device=resolve_device(device))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Switch garbage collection off while the libraries are imported.

    The first import creates a million objects that live as long as the process. Collecting garbage among them during
    the import, later and at exit takes a third of the computing time of a command on one image.
    """
    if "clip_guidance.clip" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def caching(clip: DualEncoder, folder: Path | None) -> Iterator[DualEncoder]:
    """Yield the CLIP; with a folder, it reads and keeps embeddings there."""
    if folder is None:
        yield clip
        return
    from clip_guidance.clip.embed_cache import CachedCLIP, EmbedCache

    with EmbedCache(folder) as cache:
        yield cast("CLIP", CachedCLIP(clip, cache))


def resolve_device(device: str | None) -> str:
    """Return the requested device; by default a GPU if there is one, else the CPU.

    Raises:
        ValueError: This machine has no such device.
    """
    import torch

    from clip_guidance._tensors import check_device

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return str(check_device(device))
    except ValueError as error:
        raise ValueError(f"--{error}") from None


def quiet(*libraries: str) -> None:
    """Silence the progress bars and the advice of other libraries; with ``--verbose`` narrate what they log."""
    for library in libraries:
        logging = importlib.import_module(f"{library}.utils.logging")
        logging.disable_progress_bar()
        if volume.verbose:
            logging.set_verbosity_info()
            logging.disable_default_handler()
            logging.enable_propagation()
        else:
            logging.set_verbosity_error()


def save_report(page: Page, path: Path) -> None:
    """Write the page of --report; call this last, since writing may fail."""
    narrate("report", str(page.save(path)))


def as_json(document: Any, indent: int | None = None) -> str:
    """Format JSON for stdout, in ASCII where stdout is not UTF-8 and would escape otherwise.

    Raises:
        ValueError: A number is not finite: JSON has none that is not.
    """
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(document, indent=indent, ensure_ascii=not utf8, allow_nan=False)
    return OBEYED.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def print_json(document: Any) -> None:
    """Print a JSON document on stdout."""
    print(as_json(document, indent=2))


def print_lines(rows: Iterable[Iterable[Any]]) -> None:
    """Print tab-separated lines; quote a cell that holds a tab, a quote or a line break.

    Cells that begin with = + - @ stay as they are: these lines are for other programs, which would read another value.
    """
    writer = csv.writer(sys.stdout, "excel-tab", lineterminator="\n")
    writer.writerows([printable(cell, keep="\t\r\n") for cell in _cells(row)] for row in rows)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table on stdout: framed on a terminal, as tab-separated lines for other programs."""
    if not sys.stdout.isatty():
        print_lines([columns, *rows])
        return
    table = Table()
    for index, column in enumerate(columns):
        numeric = bool(rows) and isinstance(rows[0][index], (int, float))
        table.add_column(escape(printable(column)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(printable(cell, keep="\n")) for cell in _cells(row)))
    Console().print(table)


def print_rows(columns: Mapping[str, type], rows: Sequence[Sequence[Any]], job: Job) -> None:
    """Print rows on stdout; other programs get a row for each input that failed, with its reason, behind the others."""
    if sys.stdout.isatty():
        print_table(list(columns), rows)
        return
    failed = [["" if row[name] is None else row[name] for name in row] for row in _failed(columns, job)]
    print_lines([[*columns, "error"], *([*row, ""] for row in rows), *failed])


def write_rows(path: Path, columns: Mapping[str, type], rows: Sequence[Sequence[Any]], job: Job) -> None:
    """Write rows to the file of --output, and behind them one for each input that failed, with its reason."""
    from clip_guidance.metrics.job.tables import write_table

    named = ({**dict(zip(columns, row, strict=True)), "error": None} for row in rows)
    write_table(path, itertools.chain(named, _failed(columns, job)), {**columns, "error": str})


def _failed(columns: Iterable[str], job: Job) -> list[dict[str, Any]]:
    """Return the rows of what failed, by column."""
    return [{**dict.fromkeys(columns), "image": one["path"], "error": one["reason"]} for one in job.failures]


def _cells(row: Iterable[Any]) -> list[str]:
    return [f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row]
