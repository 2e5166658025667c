"""Draw the same prompts from the same noise with several checkpoints, a row each.

    python training/contact_sheet.py --models runs/emoji-diffusion runs/emoji-diffusion-further \
        --data ../shared/data/emoji64-val.parquet --output sheet.png
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import torch
from PIL import Image, ImageDraw

import clip_guidance as cg
from clip_guidance.clip.hub import ModelError
from clip_guidance.data.dataset import CaptionedImages
from clip_guidance.training.settings import parse_settings

MARGIN = 16  # pixels above each row for its name, and below a band for the prompts


@dataclass(frozen=True)
class Settings:
    """Settings of one sheet."""

    models: list[str]  # folders or names of pipelines, a row each
    output: str  # image file to write
    data: str = ""  # captioned images from which prompts are drawn at random
    prompts: list[str] | None = None  # prompts, in place of those of data
    exclude_captions_containing: str | None = "skin tone"  # leave out images whose name, or a caption, contains this
    count: int = 16  # prompts drawn from data
    columns: int = 8  # most prompts side by side
    steps: int = 10  # denoising steps
    guidance_scale: float = 3.0  # of classifier-free guidance; 1 is none
    seed: int = 0  # of the draw of prompts; prompt number i starts from the noise of seed + i


def chosen_prompts(settings: Settings) -> list[str]:
    """Return the prompts that are given, or draw some from the data.

    Raises:
        SystemExit: There are neither prompts nor data.
    """
    if settings.prompts:
        return settings.prompts
    if not settings.data:
        raise SystemExit("expected --prompts, or --data with captioned images to draw them from; got neither")
    rows = CaptionedImages.load(settings.data, 64, settings.exclude_captions_containing).rows
    return [row.prompt for row in random.Random(settings.seed).sample(list(rows), min(settings.count, len(rows)))]


def images_of(model: str, prompts: list[str], settings: Settings) -> list[Image.Image]:
    """Draw an image per prompt, number i from the noise of seed + i with every model."""
    pipe = cg.load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(settings.seed + i) for i in range(len(prompts))]
    options = {"num_inference_steps": settings.steps, "guidance_scale": settings.guidance_scale}
    return pipe(prompts, generator=generator, **options).images


def sheet_of(rows: dict[str, list[Image.Image]], prompts: list[str], columns: int) -> Image.Image:
    """Lay out bands of at most ``columns`` prompts: a row per model, and the prompts below."""
    side = next(iter(rows.values()))[0].width
    cell, line = max(side, 96), side + MARGIN
    starts = range(0, len(prompts), columns)
    height = len(rows) * line + 2 * MARGIN
    sheet = Image.new("RGB", (min(columns, len(prompts)) * cell, len(starts) * height), "white")
    text = ImageDraw.Draw(sheet)
    for band, start in enumerate(starts):
        top = band * height
        for number, (name, images) in enumerate(rows.items()):
            text.text((2, top + number * line + 2), Path(name).name, "black")
            for column, image in enumerate(images[start : start + columns]):
                sheet.paste(image, (column * cell, top + number * line + MARGIN))
        for column, prompt in enumerate(prompts[start : start + columns]):
            style, _, name = prompt.removeprefix("a ").partition(" picture of a ")
            words = "\n".join(shorten(each, cell // 5, placeholder="…") for each in (style, name) if each)
            text.multiline_text((column * cell, top + len(rows) * line), words, "black", font_size=9, spacing=1)
    return sheet


def main(settings: Settings) -> None:
    prompts = chosen_prompts(settings)
    try:
        rows = {model: images_of(model, prompts, settings) for model in settings.models}
    except ModelError as error:
        raise SystemExit(str(error)) from error
    Path(settings.output).parent.mkdir(parents=True, exist_ok=True)
    sheet_of(rows, prompts, settings.columns).save(settings.output)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(parse_settings(Settings))
