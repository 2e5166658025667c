"""``clip-guidance data``: what is in a set of images and captions, before training on it?"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from clip_guidance.cli import _options as common

app = typer.Typer(no_args_is_help=True, help="Look into training data.")


@app.callback()
def group() -> None:
    """Look into training data."""  # a callback keeps `check` a subcommand while it is the only one


@app.command()
def check(
    path: Annotated[
        str,
        typer.Argument(
            help="A folder, .csv, .tsv, .jsonl, .parquet or .tar, a glob or braces, or the id of a Hub data set.",
            show_default=False,
        ),
    ],
    report: common.Report = None,
    json: common.Json = False,
    quarantine: Annotated[
        Path | None, typer.Option(help="List every bad row in this .jsonl file, as it is met.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Read only this many rows.", show_default="all of them")
    ] = None,
    max_bad_share: Annotated[float, typer.Option(min=0, max=1, help="Share of bad rows that is accepted.")] = 0.05,
    image_column: Annotated[
        str | None, typer.Option(help="Column of the images.", show_default="by its name")
    ] = None,
    caption_column: Annotated[
        list[str] | None, typer.Option(help="Column of captions; repeat for several.", show_default="by their names")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train",
    workers: Annotated[int, typer.Option(min=0, help="Threads that decode images.")] = 4,
) -> None:
    """Read every row as training would, and count the bad ones by reason.

    Ends with 1 where training would stop: more rows are bad than --max-bad-share, or all of them.

    Example: clip-guidance data check photos/ --quarantine bad.jsonl
    """
    if quarantine is not None and quarantine.suffix != ".jsonl":
        raise typer.BadParameter(f"--quarantine must end in .jsonl, got {quarantine.name}")
    if quarantine is not None and quarantine.exists():
        raise typer.BadParameter(f"--quarantine {quarantine} exists; nothing is overwritten")

    from PIL import Image

    from clip_guidance import data as reading

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such images are counted
    pairs = reading.open_pairs(
        path,
        image_column=image_column,
        caption_columns=caption_column or (),
        split=split,
        policy=reading.Policy(max_bad_share=max_bad_share),
        workers=workers,
        quarantine=quarantine,
    )
    lengths = [part.rows for part in pairs.source.parts]
    known = None if None in lengths else sum(length or 0 for length in lengths)
    with common.Job() as job, common.progress() as bar:
        task = bar.add_task("rows", total=known if limit is None else limit)
        reading.check(pairs, limit, on_row=lambda: bar.advance(task))
    found = reading.Report.of(pairs)
    for row in [row for examples in found.examples.values() for row in examples]:
        job.fail(row["key"], f"{row['reason']}: {row['detail']}")
    if json:
        common.print_json(found.as_json())
    else:
        common.print_table(["what", "rows", "share", "meaning"], found.table())
    if report is not None:
        from clip_guidance.report import data_check

        common.save_report(data_check(found), report)
    if not found.accepted:
        common.narrate("error", f"{path}: {found.verdict}")
    raise typer.Exit(130 if job.interrupted else 0 if found.accepted else 1)
