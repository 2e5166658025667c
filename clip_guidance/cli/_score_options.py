"""The options of ``score`` alone: their types and help texts."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clip_guidance.cli._options import _number

DEFINITION, MODEL = "torchmetrics", "emoji-judge"  # of the CLIP's score, unless rewards alone are asked for


class LongPrompts(StrEnum):
    """Treatment of a text that is longer than the context of the CLIP."""

    truncate = "truncate"
    average = "chunk-average"


class DType(StrEnum):
    """Precision in which the CLIP computes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Scored = Annotated[
    list[str] | None,  # a Path would turn ./- into -
    typer.Argument(
        help="Images, folders (a .txt beside an image is its prompt), globs, tables (.csv, .tsv, .jsonl, .parquet) of "
        "image and maybe prompt; - for lines of paths or JSON objects, or a CSV.",
        show_default=False,
    ),
]
SharedPrompt = Annotated[
    str | None,
    typer.Option(help="Text for all images that come without one.", show_default="the prompt stored by generate"),
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(help="A table with the columns image and prompt, in place of PATHS.", show_default=False),
]
ImageColumn = Annotated[
    str | None,
    typer.Option(help="Column of images in the tables, or of CSV or JSON lines.", show_default="by its name"),
]
PromptColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of prompts in the tables, or of CSV or JSON lines.", show_default="prompt, or that of captions"
    ),
]
Definitions = Annotated[
    list[str] | None,
    typer.Option(
        help="Definition of the CLIP's score: torchmetrics (100·cos), hessel (2.5·max(cos, 0), prefixed), cosine, "
        "sigmoid (by a SigLIP), clip-iqa[:PAIR], aesthetic:HEAD.safetensors; repeat for several.",
        show_default=DEFINITION,
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(help="CLIP: a packaged name, a folder, or a hub id; repeat for several.", show_default=MODEL),
]
Rewards = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        help="Reward: pickscore, hpsv2.1, aesthetic, imagereward, a folder, a file or a hub id; repeat for several. A "
        "CLIP scores too where --definition or --model is given.",
        show_default=False,
    ),
]
ScoresFile = Annotated[
    Path | None,
    typer.Option(
        help="Write the scores to this .jsonl, .csv or .parquet file, which appears once it is complete, and print "
        "their means alone. An image that failed has its reason in the column error.",
        show_default=False,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue --output: scores in it, or in the OUTPUT.partial of a killed run, are not computed again "
        "where image (its bytes), prompt, definition and model are the same.",
    ),
]
LongPromptsOption = Annotated[
    LongPrompts,
    typer.Option(
        help="Texts longer than the context: truncate them (the row says so), or average their chunks, which is a "
        "definition of its own; rewards truncate."
    ),
]
Precision = Annotated[DType, typer.Option(help="Precision in which models compute; it is written with the scores.")]
Threads = Annotated[
    int | None, _number(1, 1024, help="Threads that decode images.", show_default="one per core, at most 8")
]
Draft = Annotated[
    bool, typer.Option("--draft", help="Decode large JPEGs at a smaller size: faster, but the scores change.")
]
