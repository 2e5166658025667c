"""Checks of options, which run before any work begins."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import typer

T = TypeVar("T")

SCORE_FORMATS = (".jsonl", ".csv", ".parquet")


def check_finite(value: float | None) -> float | None:
    """Reject a number that is NaN, which lies within any range, or infinite."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"expected a finite number, got {value}")
    return value


def parsed(read: Callable[[str], T]) -> Callable[[str], T]:
    """Make the parser of an option of what its ``ValueError`` says."""

    def parse(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parse


def check_report(path: Path | None) -> Path | None:
    """Reject a --report that would overwrite anything but a former report."""
    if path is not None:
        from clip_guidance.report.html.page import check_target

        try:
            check_target(path)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return path


def check_quarantine(path: Path | None) -> Path | None:
    """Reject a --quarantine that is not a new .jsonl file."""
    if path is not None and path.suffix != ".jsonl":
        raise typer.BadParameter(f"--quarantine must end in .jsonl, got {path.name}")
    if path is not None and path.exists():
        raise typer.BadParameter(f"--quarantine {path} exists; nothing is overwritten")
    return path


def check_new_folder(path: Path) -> Path:
    """Reject a folder to be written that holds something already."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise typer.BadParameter(f"{path} is not an empty folder; nothing is overwritten")
    return path


def check_suffix(path: Path | None) -> None:
    """Reject an --output of rows that is no table."""
    if path is not None and path.suffix not in SCORE_FORMATS:
        raise typer.BadParameter(f"--output must end in {' or '.join(SCORE_FORMATS)}, got {path.name}")


def check_new_table(path: Path | None) -> Path | None:
    """Reject an --output of rows that is no table, that exists, or that cannot be written."""
    check_suffix(path)
    if path is not None:
        from clip_guidance.metrics.job.tables import check_output

        if path.exists():
            raise typer.BadParameter(f"--output {path} exists; nothing is overwritten")
        try:
            check_output(path)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return path


def check_score(
    paths: list[str] | None, prompts_file: Path | None, prompt: str | None, output: Path | None, resume: bool
) -> None:
    """Reject options of ``score`` that contradict each other."""
    if (paths and prompts_file) or not (paths or prompts_file):
        raise typer.BadParameter("give images or --prompts-file")
    if prompt is not None and not prompt.strip():
        raise typer.BadParameter("--prompt is empty")
    check_suffix(output)
    if resume and not output:
        raise typer.BadParameter("--resume needs the --output to go on with")


def check_similar(
    paths: list[Path] | None, to: Path | None, duplicates: float | None, index: str | None, cache: Path | None
) -> None:
    """Reject options of ``similar`` that contradict each other."""
    if duplicates is not None and to is not None:
        raise typer.BadParameter("give --to or --duplicates")
    if index is not None and (duplicates is None or paths):
        raise typer.BadParameter("--index takes --duplicates and no images")
    if index is not None and cache is not None:
        raise typer.BadParameter("--index takes no --cache: the embeddings are in the index")
    if index is None and not paths:
        raise typer.BadParameter("give images, or --index and --duplicates")
