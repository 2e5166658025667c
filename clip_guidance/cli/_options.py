"""The options of all subcommands: their types, ranges and help texts."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from clip_guidance.cli._checks import check_finite, check_new_table, check_quarantine, check_report, parsed
from clip_guidance.generation.candidates import MAX_CANDIDATES
from clip_guidance.generation.settings import RANGES, SCHEDULERS
from clip_guidance.generation.weighted_reward import WeightedReward

TUNED_DEFAULT = "tuned for the model"
MANY = 1_000_000  # the most of anything that is counted: rows, images, resamples


def _number(low: float, high: float, *names: str, help: str, **how: Any) -> Any:
    """Make an option that takes a finite number from ``low`` to ``high``."""
    return typer.Option(*names, min=low, max=high, callback=check_finite, help=help, **how)


class On(StrEnum):
    """The key by which scores of two runs are paired."""

    prompt = "prompt"
    image = "image"


# ---------------------------------------------------------------- of several subcommands

Paths = Annotated[list[Path], typer.Argument(help="Images, folders of images, or globs.", show_default=False)]
Model = Annotated[str, typer.Option("--model", help="CLIP: a packaged name, a folder, or a hub id.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Device = Annotated[str | None, typer.Option(help="Where to compute.", show_default="a GPU if there is one")]
BatchSize = Annotated[int, _number(1, 65_536, help="Images per batch, which are in memory and encoded at once.")]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder that keeps embeddings, so that all subcommands together encode an image once.", show_default=False
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        callback=check_report,
        help="Also write an HTML page (.html) with up to 200 images. It replaces a former report, but no other file.",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        callback=check_new_table,
        help="Write the rows to this new .jsonl, .csv or .parquet file instead of printing them. An image that failed "
        "has its reason in the column error.",
        show_default=False,
    ),
]
Pipeline = Annotated[str, typer.Option(help="Pipeline: a packaged name, a folder, or a hub id.")]

# ---------------------------------------------------------------- generate

Prompts = Annotated[list[str] | None, typer.Option(help="Text of the image; repeat for several.", show_default=False)]
From = Annotated[
    list[Path] | None,
    typer.Option("--from", help="Generate this image again; other options replace its settings.", show_default=False),
]
NegativePrompt = Annotated[str, typer.Option(help="Text that classifier-free guidance steers away from.")]
ClipPrompt = Annotated[str | None, typer.Option(help="Text that CLIP guidance steers to.", show_default="the prompt")]
Seed = Annotated[int, _number(*RANGES["seed"], help="Seed of the first image; the next one has seed + 1.")]
NumImages = Annotated[int, _number(1, MANY, help="Images per prompt.")]
SteeringCLIP = Annotated[
    str | None,
    typer.Option(help="CLIP that steers: a packaged name, a folder, or a hub id.", show_default="that of the model"),
]
Judge = Annotated[
    str | None,
    typer.Option(
        help="CLIP that scores but does not steer: a packaged name, a folder, or a hub id.",
        show_default="that of the model",
    ),
]
Scale = Annotated[
    float | None,
    _number(*RANGES["scale"], help="Strength of CLIP guidance; 0 switches it off.", show_default=TUNED_DEFAULT)
]
GuidanceScale = Annotated[
    float, _number(*RANGES["guidance_scale"], help="Strength of classifier-free guidance; 1 switches it off.")
]
Steps = Annotated[int, _number(*RANGES["steps"], help="Denoising steps per image.")]
Mode = Annotated[
    str | None,
    typer.Option(
        help="Gradient of CLIP guidance: x0 (at the predicted image), exact (through the denoiser too), noisy (of a "
        "tower that reads noisy latents), or blend (noisy and x0).",
        show_default=TUNED_DEFAULT,
    ),
]
Start = Annotated[
    float | None,
    _number(
        *RANGES["start"], help="Share of the steps after which CLIP guidance begins.", show_default=TUNED_DEFAULT
    ),
]
Stop = Annotated[
    float | None,
    _number(*RANGES["stop"], help="Share of the steps after which CLIP guidance ends.", show_default=TUNED_DEFAULT),
]
Every = Annotated[int, _number(*RANGES["every"], help="Apply CLIP guidance at every n-th step.")]
Cutouts = Annotated[int, _number(*RANGES["cutouts"], help="Views that CLIP sees: the whole image, and random crops.")]
Scheduler = Annotated[
    str | None, typer.Option(help=f"Scheduler: one of {', '.join(SCHEDULERS)}.", show_default="the model's own")
]
Cap = Annotated[
    float | None,
    _number(*RANGES["cap"], help="Longest step of CLIP guidance, in steps of classifier-free.", show_default="none"),
]
Damping = Annotated[
    float | None,
    _number(*RANGES["damping"], help="Curvature of the reward; damps strong guidance.", show_default=TUNED_DEFAULT),
]
Tuned = Annotated[
    Path | None,
    typer.Option(help="What clip-guidance tune wrote: models and settings that are not given.", show_default=False),
]
SteeringRewards = Annotated[
    list[WeightedReward] | None,
    typer.Option(
        "--reward",
        parser=parsed(WeightedReward.parse),
        metavar="NAME[=WEIGHT]",
        help="Reward that steers beside CLIP, or alone with --scale 0: pickscore, hpsv2.1, aesthetic, imagereward, a "
        "folder or a hub id; repeat for several.",
        show_default=False,
    ),
]
Particles = Annotated[
    int,
    _number(
        *RANGES["particles"],
        help="Images that travel together: the CLIP that steers chooses among them on the way, and the best is kept.",
    ),
]
BestOf = Annotated[
    int | None,
    _number(
        1,
        MAX_CANDIDATES,
        help="Draw this many candidates of each image, from as many seeds, and keep the best.",
        show_default="none",
    ),
]
Keep = Annotated[int, _number(1, MAX_CANDIDATES, help="Candidates of --best-of that are kept, best first.")]
RankBy = Annotated[
    str,
    typer.Option(
        help="What ranks the candidates: clip (the CLIP that steers, by all that it steers to), judge, a packaged "
        "CLIP, or a reward: its name, a folder or a hub id.",
    ),
]
ImageFolder = Annotated[Path, typer.Option(help="Folder for the images.")]

# ---------------------------------------------------------------- compare

ScoresArgument = Annotated[Path, typer.Argument(help="Scores of a run: .jsonl, .csv or .parquet.", show_default=False)]
Pairing = Annotated[
    On, typer.Option(help="Pair by prompt (mean over its images), or by image (path in its folder, and prompt).")
]
OneDefinition = Annotated[
    str | None, typer.Option(help="Definition to compare, where the files hold several.", show_default=False)
]
OneModel = Annotated[
    str | None,
    typer.Option(help="CLIP to compare, by its name in A, where the files hold several.", show_default=False),
]
Resamples = Annotated[int, _number(1, MANY, help="Bootstrap resamples.")]
Probability = Annotated[float, _number(0, 1, help="Confidence level of the intervals, between 0 and 1.")]
ResampleSeed = Annotated[int, _number(*RANGES["seed"], help="Seed of the resamples.")]

# ---------------------------------------------------------------- classify

Labels = Annotated[
    str | None, typer.Option(help='Labels between commas: cat, "guinea pig, long-haired".', show_default=False)
]
LabelsFile = Annotated[Path | None, typer.Option(help="A text file with one label per line.", show_default=False)]
Templates = Annotated[
    list[str] | None,
    typer.Option(help="Prompt template with {} for the label; repeat to average.", show_default="five sentences"),
]
MultiLabel = Annotated[bool, typer.Option("--multi-label", help="Several labels may hold per image, or none.")]
Threshold = Annotated[
    float | None,
    _number(
        0, 1, help="Least probability of a label that is given.", show_default="0; 0.5 if several may hold"
    ),
]
Calibrate = Annotated[
    Path | None,
    typer.Option(help="CSV (image, label) of images to calibrate the probabilities on.", show_default=False),
]
Truth = Annotated[
    str | None,
    typer.Option(
        help='True labels to compute metrics with: CSV (image, label), or "folders" for the names of the folders.',
        show_default=False,
    ),
]
TopLabels = Annotated[int, _number(1, MANY, help="Labels shown per image.")]

# ---------------------------------------------------------------- similar, index, search

OptionalPaths = Annotated[
    list[Path] | None, typer.Argument(help="Images, folders of images, or globs.", show_default=False)
]
To = Annotated[Path | None, typer.Option(help="Rank the images by similarity to this one.", show_default=False)]
Duplicates = Annotated[
    float | None,
    _number(0, 1, help="Group images whose cosine is at least this, such as 0.95.", show_default=False),
]
IndexOfDuplicates = Annotated[
    str | None, typer.Option("--index", help="With --duplicates: search the images of this index.", show_default=False)
]
Address = Annotated[
    str, typer.Option("--index", help="Index: a folder, or Milvus: ./x.db, http://host:19530.", show_default=False)
]
IndexModel = Annotated[
    str | None,
    typer.Option("--model", help="CLIP: a packaged name, a folder, or a hub id.", show_default="that of the index"),
]
Metadata = Annotated[
    list[str] | None,
    typer.Option(help="KEY=VALUE for all images given; VALUE is JSON or text. Repeat for more.", show_default=False),
]
Prune = Annotated[bool, typer.Option("--prune", help="Remove images whose file no longer exists.")]
Query = Annotated[
    list[str],
    typer.Argument(help="Query: a text, an image, or a weighted sum: 2 * red apple - ./b.png", show_default=False),
]
Where = Annotated[
    str | None,
    typer.Option(help='Filter of the metadata: year >= 2020 and album in (a, "b c")', show_default=False),
]
TopImages = Annotated[int, _number(1, MANY, help="Images found at most.")]

# ---------------------------------------------------------------- data, ui

DataPath = Annotated[
    str,
    typer.Argument(
        help="Pairs: a folder, .csv, .tsv, .jsonl, .parquet or .tar, a glob or braces, or the id of a Hub data set.",
        show_default=False,
    ),
]
Quarantine = Annotated[
    Path | None,
    typer.Option(
        callback=check_quarantine, help="Write every bad row to this new .jsonl file as it is read.", show_default=False
    ),
]
Limit = Annotated[
    int | None, _number(1, RANGES["seed"][1], help="Read only this many rows.", show_default="all of them")
]
MaxBadShare = Annotated[float, _number(0, 1, help="Share of bad rows that is accepted, from 0 to 1.")]
ImageColumn = Annotated[
    str | None, typer.Option(help="Column of images; of tars and folders, their suffix.", show_default="by its name")
]
CaptionColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--caption-column",
        help="Column of captions; of tars and folders, a suffix or a key of the .json. Repeat for several.",
        show_default="by their names",
    ),
]
Split = Annotated[str, typer.Option(help="Split of a Hub data set.")]
Workers = Annotated[int, _number(0, 1024, help="Threads that decode images.")]
Host = Annotated[str, typer.Option(help="Address to listen at.")]
Port = Annotated[int, _number(1, 65535, help="Port to listen at.")]
PageCLIP = Annotated[
    str | None, typer.Option("--clip", help="CLIP that steers and is selected first.", show_default="that of the model")
]
Root = Annotated[Path, typer.Option(help="Folder in which the page may search images and keep indices.")]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(help="Further name under which browsers reach the page; repeat for more.", show_default=False),
]
