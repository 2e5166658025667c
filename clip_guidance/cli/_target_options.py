"""The options of ``generate`` that say what CLIP steers to beside a text."""

from __future__ import annotations

from typing import Annotated

import typer

from clip_guidance.cli._checks import parsed
from clip_guidance.generation.targets import ImageFile, PlacedTarget

ClipImages = Annotated[
    list[ImageFile] | None,
    typer.Option(
        "--clip-image",
        parser=parsed(ImageFile.read),
        metavar="FILE",
        help="Image that CLIP guidance steers to, beside a --clip-prompt; repeat for several.",
        show_default=False,
    ),
]
Regions = Annotated[
    list[PlacedTarget] | None,
    typer.Option(
        "--region",
        parser=parsed(PlacedTarget.parse),
        metavar="TEXT@L,T,R,B",
        help="Text, or file:IMAGE, that CLIP guidance steers a part of the image to: left, top, right and bottom are "
        "shares of its sides, as in 'a red apple@0,0,0.5,1'; repeat for several.",
        show_default=False,
    ),
]
