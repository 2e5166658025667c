"""The options of ``generate`` for files of prompts, the size of the images, and published methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clip_guidance.cli._options import _number
from clip_guidance.generation.settings import METHODS, RANGES

PromptsFile = Annotated[
    Path | None,
    typer.Option(
        help="Prompts: a .txt with one per line, or a table (.csv, .tsv, .jsonl, .parquet) with a column prompt and "
        "maybe negative_prompt, seed, width and other options. A second start goes on with it; processes share it.",
        show_default=False,
    ),
]
BatchSize = Annotated[
    int,
    _number(1, 4_096, help="With --prompts-file: images, or candidates of an image, that are drawn together."),
]
Width = Annotated[
    int | None,
    _number(*RANGES["width"], help="Width of the images in pixels.", show_default="that of the model"),
]
Height = Annotated[
    int | None,
    _number(*RANGES["height"], help="Height of the images in pixels.", show_default="that of the model"),
]
Method = Annotated[
    str | None,
    typer.Option(
        help=f"Published method by which CLIP steers, in place of a --mode: one of {', '.join(METHODS)}.",
        show_default="none",
    ),
]
