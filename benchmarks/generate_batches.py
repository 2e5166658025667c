"""Measure images per CPU second of ``clip-guidance generate``, in batches beside one at a time.

    python benchmarks/generate_batches.py --output benchmarks/generate_batches.md

Both draw the same prompts with the same settings, by one ``ImageGenerator`` in one process whose models are loaded
once: what the command line does for each image (guidance, decoding, scores of guide and judge), but for reading the
table and writing PNG files. CPU seconds, user and system, hardly depend on what else runs. The images are compared
pixel by pixel: each has its noise from its own seed, so that what a batch changes is rounding.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clip_guidance.generation.batch import in_batches
from clip_guidance.generation.generator import ImageGenerator
from clip_guidance.generation.settings import GenerateSettings
from clip_guidance.training.settings import parse_settings

STYLES = ("noto", "twemoji", "blob", "openmoji")
THINGS = (
    *("apple", "rocket", "cat", "dog", "fish", "boat", "house", "cake"),
    *("pear", "tree", "star", "moon", "sun", "car", "bus", "hat"),
)


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    images: int = 64  # prompts, each drawn once
    batch_size: int = 16  # images drawn together
    steps: int = 20  # denoising steps
    model: str = "emoji"  # pipeline: a packaged name, a folder, or a hub id
    clip: str = ""  # CLIP that steers; that of the model by default
    device: str = "cpu"  # torch device; CPU seconds are those of the process, whatever the device
    output: Path | None = None  # Markdown file for the table, which is printed too


@dataclass(frozen=True)
class Row:
    """What was measured with guidance or without."""

    name: str
    seconds_alone: float  # CPU seconds per image
    seconds_together: float
    within: int  # images of which no pixel differs by more than 1/255
    most: int  # largest difference of a pixel, of 255

    @property
    def ratio(self) -> float:
        """Images per CPU second in batches, to those one at a time."""
        return self.seconds_alone / self.seconds_together


def measure(settings: Settings, name: str, scale: float | None) -> Row:
    prompts = [f"a {style} picture of a {thing}" for style, thing in itertools.product(STYLES, THINGS)]
    shared: dict[str, Any] = {"steps": settings.steps, "model": settings.model, "clip": settings.clip or None}
    each = [
        GenerateSettings(prompt, scale=scale, seed=seed, **shared)
        for seed, prompt in zip(range(settings.images), itertools.cycle(prompts), strict=False)
    ]
    make = ImageGenerator(settings.device)
    make.batch([GenerateSettings("warm up", scale=scale, **{**shared, "steps": 1})])
    found, seconds = [], []
    for size in (1, settings.batch_size):
        start = time.process_time()
        drawn = [made for batch in in_batches(each, size, lambda one: one) for made in make.batch(batch)]
        seconds.append((time.process_time() - start) / len(each))
        found.append([np.asarray(made.image, np.int16) for made in drawn])  # type: ignore[union-attr]
    apart = [int(abs(one - other).max()) for one, other in zip(*found, strict=True)]
    return Row(name, *seconds, sum(most <= 1 for most in apart), max(apart))


def page(rows: list[Row], settings: Settings) -> str:
    lines = [
        "| `generate` | CPU s per image alone | in batches | images per CPU s | within 1/255 | largest difference |"
    ]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        same = f"{row.within} of {settings.images} | {row.most}/255"
        lines.append(
            f"| {row.name} | {row.seconds_alone:.2f} | {row.seconds_together:.2f} | {row.ratio:.2f} | {same} |"
        )
    head = (
        f"`python benchmarks/generate_batches.py`: {settings.images} prompts, model `{settings.model}`, "
        f"{settings.steps} steps, float32, {settings.device}, {torch.get_num_threads()} threads; {settings.batch_size} "
        "images drawn together beside one at a time, by one process whose models are loaded once."
    )
    return "# Images per CPU second, in batches\n\n" + head + "\n\n" + "\n".join(lines) + "\n"


def main(settings: Settings) -> None:
    rows = [measure(settings, name, scale) for name, scale in (("guided", None), ("unguided (`--scale 0`)", 0.0))]
    print(found := page(rows, settings))
    if settings.output is not None:
        settings.output.write_text(found)


if __name__ == "__main__":
    main(parse_settings(Settings))
