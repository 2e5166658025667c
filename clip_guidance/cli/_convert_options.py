"""The options of ``convert`` alone, as :mod:`._options` has those of the other subcommands."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clip_guidance.cli._checks import check_new_folder


class Library(StrEnum):
    """The library whose folder ``convert`` writes."""

    transformers = "transformers"
    open_clip = "open_clip"
    ours = "clip_guidance"


Model = Annotated[
    str, typer.Argument(help="CLIP: a packaged name, a folder of one of these libraries, a hub id.", show_default=False)
]
NewFolder = Annotated[
    Path, typer.Argument(callback=check_new_folder, help="Folder to write, new or empty.", show_default=False)
]
To = Annotated[Library, typer.Option(help="Library that will read the folder.", show_default=False)]
Repository = Annotated[
    str | None,
    typer.Option(
        help="With --to open_clip: owner/name on the hub, where it will look for the tokenizer once it is uploaded.",
        show_default="the folder's name",
    ),
]
