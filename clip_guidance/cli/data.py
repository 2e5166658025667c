"""``clip-guidance data``: what is in a set of images and captions, before training on it?"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from clip_guidance.cli import _common as common
from clip_guidance.cli import _options as options
from clip_guidance.cli._command import Command

if TYPE_CHECKING:
    from clip_guidance.data import Pairs, Report

app = typer.Typer(no_args_is_help=True, help="Check training data.")


@app.callback()
def group() -> None:
    """Check training data."""  # a callback keeps `check` a subcommand while it is the only one


@app.command(cls=Command)
def check(
    path: options.DataPath,
    report: options.Report = None,
    json: options.Json = False,
    quarantine: options.Quarantine = None,
    limit: options.Limit = None,
    max_bad_share: options.MaxBadShare = 0.05,
    image_column: options.ImageColumn = None,
    caption_column: options.CaptionColumns = None,
    split: options.Split = "train",
    workers: options.Workers = 4,
) -> None:
    """Read every row as training would, and count the bad ones by reason.

    The exit code is 1 where training would stop: more rows than --max-bad-share are bad, or all of them.

    Example: clip-guidance data check photos/ --quarantine bad.jsonl
    """
    from clip_guidance.data import Policy, open_pairs

    pairs = open_pairs(
        path,
        image_column=image_column,
        caption_columns=caption_column or (),
        split=split,
        policy=Policy(max_bad_share=max_bad_share),
        workers=workers,
        quarantine=quarantine,
    )
    with common.Job() as job:
        _read(pairs, limit)
    found = _show(pairs, report, json, job)
    if not found.accepted:
        common.narrate("error", f"{path}: {found.verdict}")
    raise typer.Exit(130 if job.interrupted else 0 if found.accepted else 1)


def _read(pairs: Pairs, limit: int | None) -> None:
    """Read the pairs with a progress bar; they count their bad rows themselves."""
    from PIL import Image

    from clip_guidance.data import check as read

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such images are counted as bad rows
    lengths = [part.rows for part in pairs.source.parts]
    known = None if None in lengths else sum(length or 0 for length in lengths)
    with common.progress() as bar:
        task = bar.add_task("rows", total=known if limit is None else limit)
        read(pairs, limit, on_row=lambda: bar.advance(task))


def _show(pairs: Pairs, report: Path | None, json: bool, job: common.Job) -> Report:
    """Name the bad rows, print the counts, and write the page."""
    from clip_guidance.data import Report
    from clip_guidance.report import data_check

    found = Report.of(pairs)
    for row in [row for examples in found.examples.values() for row in examples]:
        job.fail(row["key"], f"{row['reason']}: {row['detail']}")
    if json:
        common.print_json(found.as_json())
    else:
        common.print_table(["what", "rows", "share", "meaning"], found.table())
    if report is not None:
        common.save_report(data_check(found), report)
    return found
