"""Fine-tune a CLIP that knows emoji on photographs of groceries; measure what it forgets.

    python benchmarks/fine_tuning.py --photos ../shared/data/grocery64.parquet \
        --emoji ../shared/data/emoji64-train.parquet --emoji_held_out ../shared/data/emoji64-val.parquet \
        --output benchmarks/fine_tuning.md

The photographs' own ``split`` column says which are for training; what is measured is zero-shot top-1 on the others
among all labels, and R@1 of the emoji that were held out when the CLIP was first trained. It is trained by
``training/train_clip.py`` on the photographs alone, and on both kinds of images together.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import clip_guidance as cg
from clip_guidance.data.dataset import CaptionedImages
from clip_guidance.metrics.retrieval import recall_at_k, unique
from clip_guidance.training.settings import parse_settings

PROGRAM = Path(__file__).parents[1] / "training" / "train_clip.py"
KINDS = ("photographs", "photographs and emoji")


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    photos: str  # parquet table with the columns image, label, coarse and split (train or val)
    emoji: str  # parquet table of the images that the CLIP was trained on
    emoji_held_out: str  # parquet table of the images held out of its training
    output: str = ""  # Markdown file for the table, which is printed too
    model: str = "emoji"  # CLIP to fine-tune: a packaged name, a folder, or a hub id
    steps: int = 300  # optimizer steps
    learning_rate: float = 3e-4  # at the end of the warm-up
    batch_size: int = 128  # pairs per step
    exclude_captions_containing: str = "skin tone"  # leave out images whose name, or a caption, contains this text
    limit: int | None = None  # images used of each table; None for all


def photographs(settings: Settings, split: str) -> list[dict[str, Any]]:
    rows = [row for row in pq.read_table(settings.photos).to_pylist() if row["split"] == split]
    return rows[: settings.limit]


def write_captions(rows: list[dict[str, Any]], path: Path) -> Path:
    """Write a table of images with several captions each, as any data set may have."""
    captions = [[row["label"], f"a photo of a {row['label']}", f"{row['label']}, {row['coarse']}"] for row in rows]
    pq.write_table(pa.table({"image": [row["image"] for row in rows], "caption": captions}), path)
    return path


def top1(clip: cg.CLIP, rows: list[dict[str, Any]], labels: list[str]) -> tuple[int, int]:
    """How many images are classified right among all labels, and of how many."""
    classifier = cg.ZeroShotClassifier(clip, labels)
    found = classifier([row["image"]["bytes"] for row in rows]).logits.argmax(1).tolist()
    return sum(labels[i] == row["label"] for i, row in zip(found, rows, strict=True)), len(rows)


@torch.no_grad()
def emoji_recall(clip: cg.CLIP, data: CaptionedImages) -> tuple[int, int]:
    names, targets = unique([row.name for row in data.rows])
    text_embeds = clip.encode_text([f"a picture of a {name}" for name in names])
    recall = recall_at_k(clip.encode_image(data.images), text_embeds, targets.to(text_embeds.device), ks=(1,))
    return round(recall["R@1"] * len(data)), len(data)


def share(right: int, count: int, z: float = 1.96) -> str:
    """Per cent with Wilson's 95 % interval (1927)."""
    p, shrink = right / count, 1 + z**2 / count
    centre = (p + z**2 / (2 * count)) / shrink
    half = z * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2)) / shrink
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return f"{100 * p:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def fine_tuned(settings: Settings, data: list[Path | str], folder: Path) -> cg.CLIP:
    options = {
        "init": settings.model,
        "output": folder,
        "steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "batch_size": settings.batch_size,
        "exclude_captions_containing": settings.exclude_captions_containing,
        "random_flip": True,
        "erasing_probability": 0.3,
        "warmup": 20,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    done = subprocess.run([sys.executable, str(PROGRAM), "--data", *map(str, data), *words], stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(done.returncode)
    return cg.CLIP.from_pretrained(folder)


def main(settings: Settings) -> None:
    train, test = (photographs(settings, split) for split in ("train", "val"))
    labels = sorted({row["label"] for row in train + test})
    clip = cg.CLIP.from_pretrained(settings.model)
    size, exclude = clip.image_processor.image_size, settings.exclude_captions_containing
    emoji = CaptionedImages.from_parquet(settings.emoji_held_out, size, exclude)
    emoji = emoji.subset(range(min(len(emoji), settings.limit or len(emoji))))
    lines = [f"| `{settings.model}` | top-1 of {len(labels)} groceries | R@1 of held-out emoji |", "|" + " --- |" * 3]

    def row(name: str, clip: cg.CLIP) -> None:
        lines.append(f"| {name} | {share(*top1(clip, test, labels))} | {share(*emoji_recall(clip, emoji))} |")
        print(lines[-1], flush=True)

    row("as packaged", clip)
    with tempfile.TemporaryDirectory() as scratch:
        table = write_captions(train, Path(scratch, "photos.parquet"))
        for kind, data in zip(KINDS, ([table], [table, settings.emoji]), strict=True):
            row(f"fine-tuned on {kind}", fine_tuned(settings, list(data), Path(scratch, kind.replace(" ", "-"))))
    head = (
        "# Fine-tuning\n\n"
        f"`python benchmarks/fine_tuning.py`: {settings.steps} steps of {settings.batch_size}, learning rate "
        f"{settings.learning_rate:g}, {len(train)} photographs for training and {len(test)} held out; per cent with "
        f"95 % intervals. Chance is {100 / len(labels):.1f} % and {100 / len({r.name for r in emoji.rows}):.2f} %."
    )
    page = head + "\n\n" + "\n".join(lines) + "\n"
    if settings.output:
        Path(settings.output).write_text(page)


if __name__ == "__main__":
    main(parse_settings(Settings))
