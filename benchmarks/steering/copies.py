"""Show drawings of held-out prompts above the training images that are nearest to them, so that copying shows.

    python benchmarks/steering/copies.py \
        --data ../shared/data/emoji64-train.parquet --held_out ../shared/data/emoji64-val.parquet \
        --output benchmarks/steering/results

It reads what run.py has kept in ``work`` of the first prompts, drawn with classifier-free guidance alone; none is
chosen otherwise. Below each pair: the prompt, and the root mean square difference of their pixels in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

import torch
from figure import kept
from judging import nearest
from methods import PLAIN
from PIL import Image, ImageDraw
from run import Program, Settings
from torch import Tensor

from clip_guidance.training.settings import parse_settings

CELL, GAP, CAPTION = 96, 4, 40


def sheet(drawn: Tensor, known: Tensor, captions: Sequence[str], columns: int = 10) -> Image.Image:
    """Lay out images uint8 (n, 3, H, W), each above the known one of its number and its caption."""
    side = drawn.shape[-1]
    band = 2 * side + GAP + CAPTION
    shown = Image.new("RGB", (columns * CELL, -(-len(drawn) // columns) * band), "white")
    text = ImageDraw.Draw(shown)
    for number, caption in enumerate(captions):
        x, top = number % columns * CELL, number // columns * band
        for y, image in ((top, drawn[number]), (top + side + GAP, known[number])):
            shown.paste(Image.fromarray(image.permute(1, 2, 0).numpy()), (x, y))
        lines = [shorten(line, CELL // 5, placeholder="…") for line in caption.split("\n")]
        text.multiline_text((x, top + 2 * side + GAP), "\n".join(lines), "black", font_size=9, spacing=1)
    return shown


def main(settings: Settings) -> None:
    program = Program(settings)
    items = program.items("held-out")[: program.drawer.batch_size]  # a file is a batch
    images = kept(program, "main", PLAIN, items).images
    found = nearest(images, program.training.images)
    captions = []
    for item, distance in zip(items, found.distance.tolist(), strict=True):
        style, _, name = item.prompt.removeprefix("a ").partition(" picture of a ")
        captions.append(f"{name}\n{style}\n{distance:.3f}")
    output = Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    sheet(images, program.training.images[found.number], captions).save(output / "copies.png")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(parse_settings(Settings))
