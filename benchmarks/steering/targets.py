"""Steer towards reference images, and towards two texts in two halves, judged by a CLIP that never guided.

    python benchmarks/steering/targets.py --held_out ../shared/data/emoji64-val.parquet \
        --output benchmarks/steering/results

- images: pairs of a start prompt and a reference image of another concept, both held out of training. The judge's
  cosine of the image to the reference is compared with that of the image drawn unguided from the same noise.
- regions: two concepts of one style, one for each half; the prompt of the pipeline names the style alone. The judge
  reads each half alone, on a white square, and chooses between the two texts.

Scales, views and this prompt were chosen on rows that this report does not use (``--tuning True``).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from prompt_sets import REPORTED
from report import percent
from torch import Tensor

import clip_guidance as cg
from clip_guidance.data.dataset import CaptionedImages, Row
from clip_guidance.metrics.statistics import wilson_interval
from clip_guidance.training.settings import parse_settings

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    held_out: str = "../shared/data/emoji64-val.parquet"  # parquet table of the images held out of training
    output: str = "benchmarks/steering/results"  # folder for a Markdown file for each table, and a sheet of its images
    tables: list[str] = field(default_factory=lambda: ["images", "regions"])  # what to measure
    model: str = "emoji"  # pipeline and guide: a packaged name, a folder, or a hub id
    judge: str = "emoji-judge"  # CLIP that judges, and never guides
    image_scale: float = 20.0  # strength of the guidance towards a reference image
    image_cutouts: int = 1  # views that the guide sees of the image
    region_scale: float = 20.0  # strength of the guidance of each half
    region_cutouts: int = 4  # views that the guide sees of each half
    count: int = 40  # pairs
    steps: int = 10  # denoising steps
    batch_size: int = 10  # images drawn at a time
    seed: int = 0  # of the rows and of the noise
    tuning: bool = False  # use rows that the report does not use
    exclude_captions_containing: str = "skin tone"  # leave out images whose name contains this


@dataclass(frozen=True)
class Pair:
    """Two rows of the table, by their numbers."""

    first: int
    second: int


class Drawer:
    """Draw images from prompts and targets; image number i begins with the noise of seed + i, whatever steers it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pipe, self.clip = cg.load_pipeline(settings.model), cg.CLIP.from_pretrained(settings.model)
        self.pipe.set_progress_bar_config(disable=True)

    def __call__(
        self, prompts: Sequence[str], targets: Sequence[Any] = (), scale: float = 0.0, cutouts: int = 1
    ) -> Tensor:
        """Draw images (n, 3, H, W) in [0, 1]; unguided without targets."""
        size, images = self.settings.batch_size, []
        for first in range(0, len(prompts), size):
            part = slice(first, first + size)
            seeds = range(self.settings.seed + first, self.settings.seed + first + len(prompts[part]))
            target = list(targets[part]) if targets else "nothing"
            options = {"scale": scale, "cutouts": cutouts, "mode": "x0", "damping": 0.0}
            with cg.CLIPGuidance(self.clip, target, **options).attach(self.pipe):
                images.append(
                    self.pipe(
                        list(prompts[part]),
                        num_inference_steps=self.settings.steps,
                        guidance_scale=3.0,
                        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                        output_type="pt",
                    ).images
                )
        return torch.cat(images)


def pairs(rows: Sequence[Row], settings: Settings, same_style: bool) -> list[Pair]:
    """Pair rows of different concepts; no row is in two pairs."""
    order = list(range(len(rows)))
    random.Random(settings.seed).shuffle(order)
    order = order[REPORTED:] if settings.tuning else order[:REPORTED]
    found: list[Pair] = []
    waiting: dict[str, int] = {}
    for row in order:
        key = rows[row].style if same_style else ""
        if same_style and len(rows[row].name.split()) > 2:  # short names, as in prompt_sets.pairs
            continue
        if key in waiting and rows[waiting[key]].name != rows[row].name:
            found.append(Pair(waiting.pop(key), row))
        else:
            waiting[key] = row
    return found[: settings.count]


def steer_to_images(drawer: Drawer, judge: cg.CLIP, data: CaptionedImages, sheet: Path) -> str:
    """Return the table of reference images."""
    settings = drawer.settings
    chosen = pairs(data.rows, settings, same_style=False)
    prompts = [data.rows[pair.first].prompt for pair in chosen]
    references = torch.stack([data.images[pair.second] for pair in chosen]).float() / 255
    unguided = drawer(prompts)
    guided = drawer(prompts, list(references), settings.image_scale, settings.image_cutouts)
    wanted = judge.encode_image(references)
    before, after = ((judge.encode_image(images.clamp(0, 1)) * wanted).sum(-1) for images in (unguided, guided))
    save_rows([references, unguided, guided], sheet)
    return table(
        ("pairs", "judge's cosine to the reference rises", "% (95 % interval)", "mean before", "mean after"),
        [(*share(after > before), f"{before.mean():.3f}", f"{after.mean():.3f}")],
    )


def steer_halves(drawer: Drawer, judge: cg.CLIP, data: CaptionedImages, sheet: Path) -> str:
    """Return the table of two regions."""
    settings = drawer.settings
    chosen = [(data.rows[pair.first], data.rows[pair.second]) for pair in pairs(data.rows, settings, same_style=True)]
    prompts = [f"a {left.style} picture" for left, _ in chosen]
    texts = [(left.prompt, right.prompt) for left, right in chosen]
    regions = [[cg.Region(left, LEFT), cg.Region(right, RIGHT)] for left, right in texts]
    drawn = {
        "unguided": drawer(prompts),
        "two regions": drawer(prompts, regions, settings.region_scale, settings.region_cutouts),
    }
    save_rows(list(drawn.values()), sheet)
    rows = []
    for name, images in drawn.items():
        left, right = right_halves(judge, images.clamp(0, 1), texts)
        rows.append((name, *share(left & right), f"{int(left.sum())}", f"{int(right.sum())}"))
    return table(("steered by", "pairs", "both halves right", "% (95 % interval)", "left half", "right half"), rows)


def right_halves(judge: cg.CLIP, images: Tensor, texts: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Tell for each image whether the judge prefers the left text for its left half, and the right for its right."""
    width = images.shape[-1]
    wanted = [judge.encode_text([pair[side] for pair in texts]) for side in (0, 1)]
    right = []
    for side, half in enumerate((images[..., : width // 2], images[..., width // 2 :])):
        square = F.pad(half, (width // 4, width // 4), value=1.0)
        embeds = judge.encode_image(square)
        right.append((embeds * (wanted[side] - wanted[1 - side])).sum(-1) > 0)
    return right[0], right[1]


def save_rows(rows: Sequence[Tensor], path: Path, columns: int = 20) -> None:
    """Save the first images of each row, under each other."""
    grid = torch.cat([torch.cat(list(images[:columns]), dim=2) for images in rows], dim=1)
    Image.fromarray((grid.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()).save(path)


def share(hits: Tensor) -> tuple[str, str, str]:
    """Return the number of cases, of hits, and their share with Wilson's interval."""
    count, total = int(hits.sum()), len(hits)
    return f"{total}", f"{count}", percent(wilson_interval(count / total, total))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ("---",) * len(header), *rows))


TABLES = {
    "images": (steer_to_images, "A reference image", "the reference; unguided; guided"),
    "regions": (steer_halves, "Two halves", "unguided; two regions"),
}


def main(settings: Settings) -> None:
    drawer, judge = Drawer(settings), cg.CLIP.from_pretrained(settings.judge)
    side = drawer.pipe.unet.config.sample_size * drawer.pipe.vae_scale_factor
    data = CaptionedImages.from_parquet(settings.held_out, side, settings.exclude_captions_containing)
    output = Path(settings.output)
    (output / "sheets").mkdir(parents=True, exist_ok=True)
    for name in settings.tables:
        measure, title, rows = TABLES[name]
        strength = {"images": (settings.image_scale, settings.image_cutouts)}.get(
            name, (settings.region_scale, settings.region_cutouts)
        )
        sheet = output / "sheets" / f"targets-{name}.png"
        text = (
            f"# {title}\n\nModel and guide `{settings.model}`, judge `{settings.judge}`, {settings.steps} steps, "
            f"guidance_scale 3, scale {strength[0]:g}, {strength[1]} views, seed {settings.seed}"
            f"{', tuning rows' if settings.tuning else ''}. Made by `targets.py`.\n\n"
            f"{measure(drawer, judge, data, sheet)}\n\nRows of `{sheet.name}`: {rows}.\n"
        )
        (output / f"targets-{name}.md").write_text(text)
        print(text, flush=True)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(parse_settings(Settings))
