r"""Time encoding by an adapted SigLIP against transformers alone: the same weights, images and threads, interleaved.

    python benchmarks/adapted_clips.py --output benchmarks/adapted_clips.md

The weights are random, of the size of a ViT-S/16. Both sides are given PIL images, and take turns batch by batch, each
first in every other round, so that whatever else the machine does falls on both. Times are of the processor, not of the
clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

import clip_guidance as cg
from clip_guidance.training.settings import parse_settings


@dataclass(frozen=True)
class Settings:
    """What is timed."""

    images: int = 256  # number of images that each side encodes
    batch_size: int = 16  # images that are encoded at once
    side: int = 320  # height and width of the images, in pixels
    width: int = 384  # of the towers' hidden states; 768 for a base model
    output: str = "benchmarks/adapted_clips.md"  # Markdown file for the table


def build(width: int) -> tuple[Any, Any]:
    """A SigLIP with random weights, and the library's preprocessing."""
    torch.manual_seed(0)
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    config = transformers.SiglipConfig(text_config={**tower, "num_hidden_layers": 1}, vision_config=tower)
    return transformers.SiglipModel(config).eval(), transformers.SiglipImageProcessorPil()


def timed(encode: Callable[[list[Image.Image]], torch.Tensor], images: list[Image.Image]) -> tuple[float, torch.Tensor]:
    """Encode a batch, and say how many seconds of the processor it took."""
    start = time.process_time()
    embeds = encode(images)
    return time.process_time() - start, embeds


def main(settings: Settings) -> None:
    model, processor = build(settings.width)
    tokenizer = cg.CLIP.from_pretrained("emoji").tokenizer  # no text is encoded
    clip = cg.CLIP.wrap(model, tokenizer, processor)

    @torch.no_grad()
    def library(images: list[Image.Image]) -> torch.Tensor:
        pixels = processor(images, return_tensors="pt")
        return F.normalize(model.get_image_features(**pixels).pooler_output, dim=-1)

    sides = {"transformers": library, "adapted": clip.encode_image}
    rng = np.random.default_rng(0)
    shape = (settings.batch_size, settings.side, settings.side, 3)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for encode in sides.values():  # a first batch that does not count
        encode([Image.fromarray(array) for array in rng.integers(0, 256, (2, *shape[1:]), dtype=np.uint8)])
    largest = 0.0
    for turn in range(settings.images // settings.batch_size):
        images = [Image.fromarray(array) for array in rng.integers(0, 256, shape, dtype=np.uint8)]
        embeds = {}
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            took, embeds[name] = timed(sides[name], images)
            seconds[name].append(took)
        largest = max(largest, float((embeds["adapted"] - embeds["transformers"]).abs().max()))
    ratios = [a / b for a, b in zip(seconds["adapted"], seconds["transformers"], strict=True)]
    rows = "\n".join(f"| {name} | {sum(took):.1f} | {median(took):.2f} |" for name, took in seconds.items())
    total = sum(seconds["adapted"]) / sum(seconds["transformers"])
    text = (
        f"Encoding {settings.images} images of {settings.side} pixels by a SigLIP of width {settings.width}, 12 "
        f"layers, 224 pixels, in batches of {settings.batch_size}, on {torch.get_num_threads()} thread of a CPU.\n\n"
        f"| | seconds of the processor | median of a batch |\n| --- | --- | --- |\n{rows}\n\n"
        f"Adapted over transformers: {total:.2f} of the sums, {median(ratios):.3f} the median of a batch. Largest "
        f"difference of two vectors: {largest:.1e}.\n"
    )
    Path(settings.output).write_text(text)
    print(text)


if __name__ == "__main__":
    main(parse_settings(Settings))
