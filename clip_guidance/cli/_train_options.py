"""The options of ``train`` alone."""

from __future__ import annotations

from typing import Annotated

import typer

TrainingSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[--SETTING VALUE]...",
        help="Settings of the training, and --config RECIPE.yaml with any of them; --help lists them all.",
        show_default=False,
    ),
]
