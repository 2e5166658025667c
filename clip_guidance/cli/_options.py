"""What the subcommands share: where output goes, skipping bad images, loading the CLIP."""

from __future__ import annotations

import csv
import gc
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.progress import Progress

    from clip_guidance.clip import CLIP
    from clip_guidance.clip.embed_cache import EncodedBatch
    from clip_guidance.report.html.page import Page

stderr = Console(stderr=True, highlight=False, soft_wrap=True)
_STYLES = {"error": "bold red", "failed": "red", "warning": "yellow", "interrupted": "yellow"}

Paths = Annotated[list[Path], typer.Argument(help="Images, folders of images, or globs.", show_default=False)]
Model = Annotated[str, typer.Option("--model", help="CLIP: a packaged name, a folder, or a hub id.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Device = Annotated[str | None, typer.Option(help="Where to compute.", show_default="a GPU if there is one")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images held and encoded at once.")]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder that keeps embeddings: an image is encoded once, whichever subcommand asks.",
        show_default=False,
    ),
]


def _report_target(path: Path | None) -> Path | None:
    if path is not None:
        from clip_guidance.report.html.page import check_target

        try:
            check_target(path)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return path


Report = Annotated[
    Path | None,
    typer.Option(
        callback=_report_target,
        help="Also write a page to look at (.html), with up to 200 images. Replaces a former report, no other file.",
        show_default=False,
    ),
]


def narrate(kind: str, message: str) -> None:
    """One line on stderr, such as ``failed: a.png: is empty (0 bytes)``."""
    style = _STYLES.get(kind, "cyan")
    line = " ".join(message.split()).encode("utf-8", "backslashreplace").decode()  # names of files may be no text
    stderr.print(f"[{style}]{kind}:[/] {escape(line)}")


def warn_once() -> Callable[..., None]:
    """A ``warnings.showwarning`` without file names and source lines, that says nothing twice in a run."""
    told: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in told:
            told.add(str(message))
            narrate("warning", str(message))

    return show


class Job:
    """A run over many inputs: names each that failed and ends with the right exit code.

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
        """Records and names one input that failed."""
        self.failures.append({"path": name, "reason": reason})
        narrate("failed", f"{name}: {reason}")

    def encoded(self, clip: CLIP, paths: Sequence[Path], batch_size: int) -> Iterator[EncodedBatch]:
        """The vectors of the readable images, in batches, with a progress bar; the others fail by name."""
        from clip_guidance.clip.embed_cache import encode_files

        with progress() as bar:
            task = bar.add_task("images", total=len(paths))
            for batch in encode_files(clip, paths, batch_size):
                for skipped in batch.skipped:
                    self.fail(skipped.path, skipped.reason)
                if batch.names:
                    yield batch
                bar.advance(task, len(batch.names) + len(batch.skipped))

    def finish(self) -> None:
        """Ends the command with exit code 0, 1 or 130."""
        raise typer.Exit(130 if self.interrupted else 1 if self.failures else 0)


def progress() -> Progress:
    """A progress bar on stderr; nothing where stderr is no terminal."""
    from rich.progress import Progress

    return Progress(console=stderr, transient=True, disable=not stderr.is_terminal)


def load_clip(name: str, device: str | None) -> CLIP:
    """The CLIP of this name, on the device.

    Raises:
        ValueError: there is no such model or device.
    """
    with _no_collection():
        quiet("transformers")
        from clip_guidance.clip import CLIP

        return CLIP.from_pretrained(name).to(resolve_device(device))


@contextmanager
def _no_collection() -> Iterator[None]:
    """The first import of the libraries makes a million objects that stay as long as the process.

    Looking for garbage among them, now, later and at exit, is a third of what a command on one image computes.
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
def caching(clip: CLIP, folder: Path | None) -> Iterator[CLIP]:
    """The CLIP; where a folder is given, one that looks into it before it encodes an image."""
    if folder is None:
        yield clip
        return
    from clip_guidance.clip.embed_cache import CachedCLIP, EmbedCache

    with EmbedCache(folder) as cache:
        yield cast("CLIP", CachedCLIP(clip, cache))


def resolve_device(device: str | None) -> str:
    """The device asked for, or the best there is.

    Raises:
        ValueError: this machine has no such device.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown name; known, but torch was built without it
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from None
    return device


def quiet(*libraries: str) -> None:
    """No progress bars and advice of the libraries between our lines."""
    for library in libraries:
        logging = importlib.import_module(f"{library}.utils.logging")
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def save_report(page: Page, path: Path) -> None:
    """Writes the page that --report asks for; after the results are printed, for it may fail."""
    narrate("report", str(page.save(path)))


def as_json(document: Any, indent: int | None = None) -> str:
    """JSON for stdout, with ASCII alone where that is not UTF-8: another codec would put its own escapes into it."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(document, indent=indent, ensure_ascii=not utf8)


def print_json(document: Any) -> None:
    """A JSON document on stdout."""
    print(as_json(document, indent=2))


def print_lines(rows: Iterable[Iterable[Any]]) -> None:
    """Tab-separated lines for other programs; a text that holds a tab, a quote or a line's end stands in quotes."""
    writer = csv.writer(sys.stdout, "excel-tab", lineterminator="\n")
    writer.writerows(map(_cells, rows))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout: framed on a terminal, else tab-separated lines for other programs."""
    if not sys.stdout.isatty():
        print_lines([columns, *rows])
        return
    table = Table()
    for index, column in enumerate(columns):
        numeric = bool(rows) and isinstance(rows[0][index], (int, float))
        table.add_column(escape(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, _cells(row)))
    Console().print(table)


def _cells(row: Iterable[Any]) -> list[str]:
    return [f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row]
