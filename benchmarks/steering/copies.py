"""Show drawings of held-out prompts above the training images that are nearest to them, so that copying shows.

    python benchmarks/steering/copies.py \
        --data ../shared/data/emoji64-train.parquet --held_out ../shared/data/emoji64-val.parquet \
        --output benchmarks/steering/results

It reads what run.py has kept in ``work`` of the first prompts, drawn with classifier-free guidance alone; none is
chosen otherwise. A green frame: the two are nearer than what people take for the same image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import torch
from figure import Line, band, below, kept
from judging import COPY_RADIUS, nearest
from methods import PLAIN
from PIL import Image
from run import Program, Settings
from torch import Tensor

from clip_guidance.training.settings import parse_settings

COLUMNS = 10


def sheet(prompts: Sequence[str], drawn: Tensor, training: Tensor) -> Image.Image:
    """Show images uint8 (n, 3, H, W) above the nearest of ``training``, in bands of :data:`COLUMNS`."""
    found = nearest(drawn, training)
    copied = (found.distance < COPY_RADIUS).double()
    lines = [Line("drawn", drawn, copied), Line("nearest\ntraining image", training[found.number], copied)]
    numbers = torch.arange(len(prompts)).split(COLUMNS)
    bands = [band([prompts[i] for i in part], [line.of(part.tolist()) for line in lines]) for part in numbers]
    return reduce(below, bands)


def main(settings: Settings) -> None:
    program = Program(settings)
    items = program.items("held-out")[: program.drawer.batch_size]  # a file is a batch
    images = kept(program, "main", PLAIN, items).images
    output = Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    sheet([item.prompt for item in items], images, program.training.images).save(output / "copies.png")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(parse_settings(Settings))
