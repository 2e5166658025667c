"""The options of all subcommands: their types, their help texts, and what is checked before any work begins."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from clip_guidance.generation.settings import SCHEDULERS

TUNED_DEFAULT = "tuned for the model"
SCORE_FORMATS = (".jsonl", ".csv", ".parquet")


class LongPrompts(str, Enum):
    """What becomes of a text that is longer than the context."""

    truncate = "truncate"
    average = "chunk-average"


class DType(str, Enum):
    """The precision that the CLIP computes in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class On(str, Enum):
    """What makes a pair of two runs."""

    prompt = "prompt"
    image = "image"


def check_report(path: Path | None) -> Path | None:
    """Refuse a --report that would overwrite anything but a former report."""
    if path is not None:
        from clip_guidance.report.html.page import check_target

        try:
            check_target(path)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return path


def check_quarantine(path: Path | None) -> Path | None:
    """Refuse a --quarantine that is not a new .jsonl file."""
    if path is not None and path.suffix != ".jsonl":
        raise typer.BadParameter(f"--quarantine must end in .jsonl, got {path.name}")
    if path is not None and path.exists():
        raise typer.BadParameter(f"--quarantine {path} exists; nothing is overwritten")
    return path


def check_score(
    paths: list[str] | None, prompts_file: Path | None, prompt: str | None, output: Path | None, resume: bool
) -> None:
    """Refuse options of ``score`` that contradict each other."""
    if (paths and prompts_file) or not (paths or prompts_file):
        raise typer.BadParameter("give images or --prompts-file")
    if prompt is not None and not prompt.strip():
        raise typer.BadParameter("--prompt is empty")
    if output and output.suffix not in SCORE_FORMATS:
        raise typer.BadParameter(f"--output must end in {' or '.join(SCORE_FORMATS)}, got {output.name}")
    if resume and not output:
        raise typer.BadParameter("--resume needs the --output to go on with")


def check_similar(
    paths: list[Path] | None, to: Path | None, duplicates: float | None, index: str | None, cache: Path | None
) -> None:
    """Refuse options of ``similar`` that contradict each other."""
    if duplicates is not None and to is not None:
        raise typer.BadParameter("give --to or --duplicates")
    if index is not None and (duplicates is None or paths):
        raise typer.BadParameter("--index takes --duplicates and no images")
    if index is not None and cache is not None:
        raise typer.BadParameter("--index takes no --cache: the embeddings are in the index")
    if index is None and not paths:
        raise typer.BadParameter("give images, or --index and --duplicates")


# ---------------------------------------------------------------- of several subcommands

Paths = Annotated[list[Path], typer.Argument(help="Images, folders of images, or globs.", show_default=False)]
Model = Annotated[str, typer.Option("--model", help="CLIP: a packaged name, a folder, or a hub id.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Device = Annotated[str | None, typer.Option(help="Where to compute.", show_default="a GPU if there is one")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images held and encoded at once.")]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder that keeps embeddings: an image is encoded once, whichever subcommand asks.", show_default=False
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        callback=check_report,
        help="Also write a page to look at (.html), with up to 200 images. Replaces a former report, no other file.",
        show_default=False,
    ),
]
Pipeline = Annotated[str, typer.Option(help="Pipeline: a packaged name, a folder, or a hub id.")]

# ---------------------------------------------------------------- generate

Prompts = Annotated[list[str] | None, typer.Option(help="What to draw; repeat for several.", show_default=False)]
From = Annotated[
    list[Path] | None,
    typer.Option("--from", help="Draw this image again; options given beside it change it.", show_default=False),
]
NegativePrompt = Annotated[str, typer.Option(help="What to keep away from.")]
ClipPrompt = Annotated[str | None, typer.Option(help="What CLIP steers to.", show_default="the prompt")]
Seed = Annotated[int, typer.Option(help="Seed of the first image; the next one has seed + 1.")]
NumImages = Annotated[int, typer.Option(min=1, help="Images for each prompt.")]
SteeringCLIP = Annotated[str | None, typer.Option(help="CLIP that steers.", show_default="that of the model")]
Judge = Annotated[str | None, typer.Option(help="CLIP that only scores.", show_default="that of the model")]
Scale = Annotated[
    float | None, typer.Option(help="Strength of CLIP guidance; 0 is off.", show_default=TUNED_DEFAULT)
]
GuidanceScale = Annotated[float, typer.Option(help="Strength of classifier-free guidance.")]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps.")]
Mode = Annotated[str, typer.Option(help="x0, or exact: through the denoiser.")]
Start = Annotated[
    float | None, typer.Option(min=0, max=1, help="Where CLIP guidance begins.", show_default=TUNED_DEFAULT)
]
Stop = Annotated[float, typer.Option(min=0, max=1, help="Where CLIP guidance ends.")]
Every = Annotated[int, typer.Option(min=1, help="Steer at every n-th step.")]
Cutouts = Annotated[int, typer.Option(min=1, help="Views of the image that CLIP sees.")]
Scheduler = Annotated[
    str | None, typer.Option(help=f"One of {', '.join(SCHEDULERS)}.", show_default="the model's own")
]
Cap = Annotated[
    float | None,
    typer.Option(help="Longest step of CLIP guidance, in steps of classifier-free guidance.", show_default="none"),
]
ImageFolder = Annotated[Path, typer.Option(help="Folder for the images.")]

# ---------------------------------------------------------------- score

Scored = Annotated[
    list[str] | None,  # a Path would turn ./- into -
    typer.Argument(
        help="Images, folders, globs, tables (.csv, .tsv, .jsonl, .parquet) of image and maybe prompt; "
        "- for lines of paths or JSON objects.",
        show_default=False,
    ),
]
SharedPrompt = Annotated[
    str | None,
    typer.Option(help="The text for all images without one.", show_default="the prompt stored by generate"),
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(help="A table with the columns image and prompt, in place of PATHS.", show_default=False),
]
Definitions = Annotated[
    list[str],
    typer.Option(
        help="torchmetrics (100·cos), hessel (2.5·max(cos, 0), prefixed), cosine, clip-iqa[:PAIR], "
        "aesthetic:HEAD.safetensors; repeat for several at once."
    ),
]
Models = Annotated[
    list[str], typer.Option(help="CLIP: a packaged name, a folder, or a hub id; repeat for several at once.")
]
ScoresFile = Annotated[
    Path | None, typer.Option(help="Also write .jsonl, .csv or .parquet, complete at the end.", show_default=False)
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with --output: what it holds, or what a killed run left in OUTPUT.partial, is not computed "
        "again where image (its bytes), prompt, definition and model are the same.",
    ),
]
LongPromptsOption = Annotated[
    LongPrompts,
    typer.Option(help="Texts above the context: truncate (the row says so), or average chunks under another name."),
]
Precision = Annotated[DType, typer.Option(help="Precision of the CLIP; the record tells.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads that decode images.", show_default="one per core, at most 8")
]
Draft = Annotated[bool, typer.Option("--draft", help="Decode large JPEGs smaller: quicker, not the same.")]

# ---------------------------------------------------------------- compare

ScoresArgument = Annotated[Path, typer.Argument(help="Scores: .jsonl, .csv or .parquet.", show_default=False)]
Pairing = Annotated[
    On, typer.Option(help="What is paired: prompts, over whose images is averaged, or images by file name.")
]
OneDefinition = Annotated[
    str | None, typer.Option(help="The score to compare, where the files hold several.", show_default=False)
]
OneModel = Annotated[str | None, typer.Option(help="Its judge, by the name it has in A.", show_default=False)]
Resamples = Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")]
Probability = Annotated[float, typer.Option(help="Probability of the intervals, between 0 and 1.")]
ResampleSeed = Annotated[int, typer.Option(help="Seed of the resamples.")]

# ---------------------------------------------------------------- classify

Labels = Annotated[str | None, typer.Option(help="Labels, separated by commas.", show_default=False)]
LabelsFile = Annotated[Path | None, typer.Option(help="A text file with one label per line.", show_default=False)]
Templates = Annotated[
    list[str] | None,
    typer.Option(help="A sentence with {} for the label; repeat to average.", show_default="five sentences"),
]
MultiLabel = Annotated[bool, typer.Option("--multi-label", help="Several labels may hold, or none.")]
Threshold = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Give no label that is less likely.", show_default="0; 0.5 if several may hold"),
]
Calibrate = Annotated[
    Path | None,
    typer.Option(help="CSV (image, label) of images that the probabilities shall fit.", show_default=False),
]
Truth = Annotated[
    str | None,
    typer.Option(help='The right labels, to measure by: CSV (image, label), or "folders".', show_default=False),
]
TopLabels = Annotated[int, typer.Option(min=1, help="Labels shown for each image.")]

# ---------------------------------------------------------------- similar, index, search

OptionalPaths = Annotated[
    list[Path] | None, typer.Argument(help="Images, folders of images, or globs.", show_default=False)
]
To = Annotated[Path | None, typer.Option(help="Rank the images by likeness to this one.", show_default=False)]
Duplicates = Annotated[
    float | None, typer.Option(help="Group images whose cosine is at least this, such as 0.95.", show_default=False)
]
IndexOfDuplicates = Annotated[
    str | None, typer.Option("--index", help="With --duplicates: the images of this index.", show_default=False)
]
Address = Annotated[
    str, typer.Option("--index", help="A folder, or Milvus: ./x.db, http://host:19530.", show_default=False)
]
IndexModel = Annotated[
    str | None,
    typer.Option("--model", help="CLIP: a packaged name, a folder, or a hub id.", show_default="that of the index"),
]
Metadata = Annotated[
    list[str] | None,
    typer.Option(help="KEY=VALUE for every image given; repeat for more. JSON, or text.", show_default=False),
]
Prune = Annotated[bool, typer.Option("--prune", help="Take out images whose file is gone.")]
Query = Annotated[
    list[str],
    typer.Argument(help="A text, an image, or a weighted sum: 2 * red apple - ./b.png", show_default=False),
]
Where = Annotated[
    str | None,
    typer.Option(help='A filter of metadata: year >= 2020 and album in (a, "b c")', show_default=False),
]
TopImages = Annotated[int, typer.Option(min=1, help="Images shown.")]

# ---------------------------------------------------------------- data, ui

DataPath = Annotated[
    str,
    typer.Argument(
        help="A folder, .csv, .tsv, .jsonl, .parquet or .tar, a glob or braces, or the id of a Hub data set.",
        show_default=False,
    ),
]
Quarantine = Annotated[
    Path | None,
    typer.Option(
        callback=check_quarantine, help="List every bad row in this .jsonl file, as it is met.", show_default=False
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Read only this many rows.", show_default="all of them")]
MaxBadShare = Annotated[float, typer.Option(min=0, max=1, help="Share of bad rows that is accepted.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the images.", show_default="by its name")]
CaptionColumns = Annotated[
    list[str] | None,
    typer.Option("--caption-column", help="Column of captions; repeat for several.", show_default="by their names"),
]
Split = Annotated[str, typer.Option(help="Split of a Hub data set.")]
Workers = Annotated[int, typer.Option(min=0, help="Threads that decode images.")]
Host = Annotated[str, typer.Option(help="Address to listen at.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")]
PageCLIP = Annotated[
    str | None, typer.Option("--clip", help="CLIP that steers and judges.", show_default="that of the model")
]
Root = Annotated[Path, typer.Option(help="Folder in which images may be searched.")]
