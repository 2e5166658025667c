"""Compare our scores with torchmetrics' and transformers', on the same weights and files.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install torch transformers torchmetrics pillow
    python benchmarks/score_equality.py --peer_python /tmp/peers/bin/python --output benchmarks/score_equality.md

The peers run in a process, and where asked for in an environment, of their own (``_score_peers.py``). The CLIP has the
shape of OpenAI's ViT-B/32 and random weights unless ``--clip`` names a folder; images are real, of several sizes, so
that resizing and cropping count. Differences are of cosines; one above ``--tolerance`` fails the program.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _cost_models import CLIP_MEAN, CLIP_STD, CLIPS, letter_tokenizer
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from clip_guidance.clip import CLIP
from clip_guidance.images.load import load_image
from clip_guidance.metrics.clip_iqa import clip_iqa
from clip_guidance.metrics.clip_score import HESSEL, TORCHMETRICS, clip_score
from clip_guidance.training.settings import parse_settings

SIZES = ((64, 64), (300, 200), (250, 500))


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    data: str = "../shared/data/grocery64.parquet"  # images, and their labels
    clip: str = ""  # folder of a transformers CLIP; by default a CLIP of random weights
    size: str = "b32"  # of the CLIP of random weights: b32, b16, l14, small or tiny
    images: int = 48  # number of images
    peer_python: str = sys.executable  # interpreter of the peers' environment
    tolerance: float = 1e-5  # largest difference of a cosine that passes
    output: str = ""  # Markdown file for the table, which is printed too


@dataclass(frozen=True)
class Row:
    """One comparison; what is not to be equal has no difference."""

    what: str
    peer: str
    difference: float | None
    note: str = ""


def main(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as folder:
        clip_folder = settings.clip or str(make_clip(Path(folder) / "clip", settings.size))
        request = make_request(settings, Path(folder))
        script = Path(__file__).with_name("_score_peers.py")
        words = [settings.peer_python, str(script), clip_folder, str(Path(folder) / "request.json")]
        peers = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        rows, spread = compare(CLIP.from_pretrained(clip_folder), request, peers)
    table = as_table(rows, spread, settings)
    print(table)
    if settings.output:
        Path(settings.output).write_text(table)
    if unequal := [row for row in rows if row.difference is not None and not row.difference <= settings.tolerance]:
        row = unequal[0]
        raise SystemExit(f"{row.what}: differs from {row.peer} by {row.difference:.1e} > {settings.tolerance:g}")


def make_clip(folder: Path, size: str) -> Path:
    """Draw weights so large that embeddings tell images and texts apart; stock ones hardly do."""
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(**CLIPS[size]))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=1.0 if "embedding" in name else 3 * parameter.shape[1] ** -0.5)
    side = model.config.vision_config.image_size
    crop, shades = {"height": side, "width": side}, {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}
    for part in (
        model,
        letter_tokenizer(),
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=crop, **shades),
    ):
        part.save_pretrained(folder)
    return folder


def make_request(settings: Settings, folder: Path) -> dict[str, list[str]]:
    """Write PNG images in several sizes, with a prompt of their label and one that is too long."""
    import pyarrow.parquet as pq

    table = pq.read_table(settings.data)
    step = max(1, table.num_rows // settings.images)
    rows = table.take(list(range(0, table.num_rows, step))[: settings.images]).to_pylist()
    request: dict[str, list[str]] = {"images": [], "prompts": [], "long_prompts": []}
    for number, row in enumerate(rows):
        path = folder / f"{number}.png"
        load_image(row["image"]["bytes"]).resize(SIZES[number % len(SIZES)], Image.Resampling.BICUBIC).save(path)
        prompt = f"a photo of {row.get('label') or row['name']}"
        request["images"].append(str(path))
        request["prompts"].append(prompt)
        request["long_prompts"].append(" and ".join([prompt] * 80))
    (folder / "request.json").write_text(json.dumps(request))
    return request


def compare(clip: CLIP, request: dict[str, list[str]], peers: dict[str, Any]) -> tuple[list[Row], tuple[float, float]]:
    """All comparisons, and the least and the greatest cosine."""
    images, prompts = request["images"], request["prompts"]
    hand, metrics = peers["transformers"], peers["torchmetrics"]
    by_transformers = f"transformers {hand['version']}, cosine by hand"
    cosine, hundred = clip_score(clip, images, prompts, "cosine"), clip_score(clip, images, prompts, TORCHMETRICS)
    hessel = clip_score(clip, images, prompts, HESSEL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are cut is the point
        long = clip_score(clip, images, request["long_prompts"], "cosine")
    pair = 100 * torch.tensor(hand["pair"])
    rows = [
        Row("cosine", by_transformers, apart(cosine, hand["prompts"])),
        Row("torchmetrics", by_transformers, apart(hundred / 100, hand["prompts"])),
        Row("hessel", by_transformers, apart(hessel / 2.5, torch.tensor(hand["prefixed"]).clamp(min=0))),
        Row("cosine, prompts cut to the context", by_transformers, apart(long, hand["long"])),
        Row(
            "clip-iqa:quality, of 100 · cos",
            by_transformers,
            apart(clip_iqa(clip, images)["quality"], pair.softmax(1)[:, 0]) / 100,
        ),
    ]
    spread = (cosine.min().item(), cosine.max().item())
    if metrics["version"] is None:
        return [*rows, Row("torchmetrics", "torchmetrics", None, f"not there: {metrics['error']}")], spread
    released, mean = f"torchmetrics {metrics['version']}", TORCHMETRICS.mean(hundred)
    if metrics["error"] is None:
        rows.append(Row("torchmetrics, mean", released, abs(mean - metrics["released"]) / 100))
    else:
        rows.append(Row("torchmetrics, mean", released, None, f"it fails: {metrics['error']}"))
    mended = f"{released}, handed features that are tensors"
    lost = apart(long.clamp(min=0), torch.tensor(metrics["long"]) / 100)
    return [
        *rows,
        Row("torchmetrics, mean", mended, abs(mean - metrics["mean"]) / 100),
        Row("torchmetrics, each", mended, apart(hundred.clamp(min=0) / 100, torch.tensor(metrics["each"]) / 100)),
        Row("torchmetrics, prompts cut", mended, None, f"up to {lost:.1e} apart: it cuts off the end token"),
    ], spread


def apart(ours: torch.Tensor, theirs: Any) -> float:
    return (ours.double() - torch.as_tensor(theirs).double()).abs().max().item()


def as_table(rows: list[Row], spread: tuple[float, float], settings: Settings) -> str:
    weights = settings.clip or f"a CLIP of size {settings.size} with random weights"
    cells = [("our score", "peer", "largest difference"), ("---", "---", "---")]
    cells += [(row.what, row.peer, row.note or f"{row.difference:.1e}") for row in rows]
    lines = "\n".join("| " + " | ".join(line) + " |" for line in cells)
    return (
        "# Our scores beside torchmetrics' and transformers'\n\n"
        f"`python benchmarks/score_equality.py`: {weights}, {settings.images} images of "
        f"{', '.join(f'{w} × {h}' for w, h in SIZES)} pixels, float32 on the CPU; cosines from {spread[0]:.3f} to "
        f"{spread[1]:.3f}.\nDifferences are of cosines: a score's difference divided by its weight.\n\n{lines}\n"
    )


if __name__ == "__main__":
    main(parse_settings(Settings))
