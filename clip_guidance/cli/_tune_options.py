"""The options of ``tune`` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clip_guidance._tuned import NAMED_MODES
from clip_guidance.cli._checks import parsed
from clip_guidance.cli._options import MANY, _number


def _window(text: str) -> tuple[float, float]:
    start, _, stop = text.partition(",")
    try:
        window = float(start), float(stop)
    except ValueError:
        raise ValueError(f"expected START,STOP such as 0,0.6, got {text!r:.60}") from None
    if not 0 <= window[0] < window[1] <= 1:
        raise ValueError(f"expected 0 <= START < STOP <= 1, got {text!r:.60}")
    return window


PromptsFile = Annotated[Path | None, typer.Option(help="A text file with one prompt per line.", show_default=False)]
RequiredJudge = Annotated[
    str,
    typer.Option(help="CLIP that judges and never steers: a packaged name, a folder, or a hub id.", show_default=False),
]
RealImages = Annotated[
    list[Path] | None,
    typer.Option(
        help="Real images of the same kind, or a folder: no farther from them than unguided. Repeat for more.",
        show_default=False,
    ),
]
Scales = Annotated[
    list[float] | None,
    typer.Option("--scale", help="Strength; repeat for several.", show_default="around the calibrated one"),
]
Modes = Annotated[
    list[str] | None,
    typer.Option("--mode", help=f"Mode, of {', '.join(NAMED_MODES)}; repeat.", show_default="x0 and exact"),
]
Dampings = Annotated[
    list[float] | None,
    typer.Option("--damping", help="Curvature; repeat for several.", show_default="0 and 1 / calibrated strength"),
]
Windows = Annotated[
    list[tuple] | None,
    typer.Option(
        "--window",
        parser=parsed(_window),
        metavar="START,STOP",
        help="Share of the steps between which CLIP steers; repeat for several.",
        show_default="0,1 and 0,0.6",
    ),
]
Budget = Annotated[
    int | None, _number(1, MANY, help="Most images that are drawn.", show_default="no bound")
]
TunedFile = Annotated[
    Path, typer.Option(help="File for what was found. The images are kept beside it, as NAME.runs.jsonl.")
]
