"""Does CLIP guidance help? Pictures of held-out (concept, style) pairs, judged by a CLIP that never guided.

    python benchmarks/steering.py --data ../shared/data/emoji64-val.parquet --output benchmarks/steering.md

Every method draws the same prompts from the same noise. Reported for each: the judge's top-1 among 100 candidate
prompts (the right one and 99 others), its mean rank, the kernel distance of the judge's features to the real held-out
pictures, and seconds a picture. The guide's own similarity is shown for diagnosis and is no evidence: a guiding CLIP
always likes its own pictures.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import clip_guidance as cg
from clip_guidance.data import CaptionedPictures
from clip_guidance.distance import image_features, kernel_distance
from clip_guidance.trainer import parse_settings


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    data: str  # parquet table of held-out pictures
    output: str  # markdown table to write; a contact sheet of each method goes beside it
    model: str = "emoji"
    judge: str = "emoji-judge"
    prompts: int = 200
    skip: int = 0  # leave out this many prompts of the drawn order: strengths are tuned on others than are reported
    only: str = ""  # run only the methods whose name contains this
    candidates: int = 100
    steps: int = 10
    batch_size: int = 20
    guidance_scale: float = 3.0
    scale: float = 10.0
    exact_scale: float = 2.0  # a second, weaker row for mode "exact"
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Method:
    """One row of the table: what the pipeline is called with, and how strongly CLIP steers it."""

    name: str
    guidance_scale: float
    use_prompt: bool = True
    scale: float = 0.0
    mode: str = "x0"


def methods(settings: Settings) -> list[Method]:
    cfg, scale, weak = settings.guidance_scale, settings.scale, settings.exact_scale
    return [
        Method("no text at all", 1.0, use_prompt=False),
        Method("CLIP guidance x0 alone", 1.0, use_prompt=False, scale=scale),
        Method("text, no guidance", 1.0),
        Method(f"CFG {cfg:g}", cfg),
        Method(f"CFG {cfg:g} + CLIP x0", cfg, scale=scale),
        Method(f"CFG {cfg:g} + CLIP exact", cfg, scale=scale, mode="exact"),
        Method(f"CFG {cfg:g} + CLIP exact, scale {weak:g}", cfg, scale=weak, mode="exact"),
    ]


def draw(pipe, clip, method: Method, prompts: Sequence[str], settings: Settings) -> tuple[list[Image.Image], float]:
    """The pictures of all prompts, and seconds a picture."""
    images: list[Image.Image] = []
    began = time.perf_counter()
    for start in tqdm(range(0, len(prompts), settings.batch_size), method.name):
        batch = list(prompts[start : start + settings.batch_size])
        seeds = range(settings.seed + start, settings.seed + start + len(batch))
        guided = method.scale != 0
        guidance = cg.CLIPGuidance(clip, batch, scale=method.scale, mode=method.mode) if guided else None
        with guidance.attach(pipe) if guidance else contextlib.nullcontext():
            images += pipe(
                batch if method.use_prompt else [""] * len(batch),
                num_inference_steps=settings.steps,
                guidance_scale=method.guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            ).images
    return images, (time.perf_counter() - began) / len(prompts)


def judged(judge, images: Sequence[Image.Image], prompts: Sequence[str], settings: Settings) -> tuple[float, float]:
    """(top-1, mean rank) of each picture's prompt among itself and others drawn from the list."""
    similarity = judge.encode_image(images) @ judge.encode_text(prompts).T
    generator = torch.Generator().manual_seed(settings.seed)
    ranks = []
    for row, scores in enumerate(similarity):
        others = torch.randperm(len(prompts) - 1, generator=generator)[: settings.candidates - 1]
        others = others + (others >= row)  # every prompt but this one
        ranks.append(1 + int((~(scores[others] < scores[row])).sum()))
    ranks_ = torch.tensor(ranks, dtype=torch.float64)
    return (ranks_ == 1).double().mean().item(), ranks_.mean().item()


def contact_sheet(images: Sequence[Image.Image], columns: int = 20) -> Image.Image:
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet


def interval(share: float, count: int) -> str:
    """Share with its standard error, in percent."""
    return f"{100 * share:.1f} ± {100 * (share * (1 - share) / count) ** 0.5:.1f}"


def table(rows: list[tuple[str, ...]], settings: Settings) -> str:
    header = ("method", "judge top-1 %", "judge rank", "kernel distance", "s / picture", "guide cos (no evidence)")
    lines = [header, ("---",) * len(header), *rows]
    cells = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        f"{settings.prompts} held-out (concept, style) prompts, {settings.steps} DDIM steps, "
        f"CLIP scale {settings.scale:g}, judge `{settings.judge}` among {settings.candidates} candidates "
        f"(chance {100 / settings.candidates:g} %), on {settings.device}.\n\n{cells}\n"
    )


def main(settings: Settings) -> None:
    pipe = cg.load_pipeline(settings.model, settings.device)
    pipe.set_progress_bar_config(disable=True)
    clip = cg.CLIP.from_pretrained(settings.model).to(settings.device)
    judge = cg.CLIP.from_pretrained(settings.judge).to(settings.device)
    held_out = CaptionedPictures.from_parquet(settings.data, pipe.unet.config.sample_size * pipe.vae_scale_factor)
    chosen = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(settings.seed))
    subset = held_out.subset(chosen[settings.skip :][: settings.prompts].tolist())
    prompts = [row.prompt for row in subset.rows]
    # the reference leaves out the pictures whose prompts are drawn: the first row is compared with it too
    real = image_features(judge, held_out.subset(chosen[settings.skip + settings.prompts :].tolist()).pictures)
    output = Path(settings.output)

    def row(name: str, images: Sequence[Image.Image] | Tensor, seconds: str) -> tuple[str, ...]:
        top1, rank = judged(judge, images, prompts, settings)
        distance = kernel_distance(image_features(judge, images), real)
        cosine = (clip.encode_image(images) * clip.encode_text(prompts)).sum(-1).mean().item()
        return name, interval(top1, len(prompts)), f"{rank:.1f}", f"{distance:.4f}", seconds, f"{cosine:.3f}"

    rows = [row("real pictures", subset.pictures, "")]
    for method in (method for method in methods(settings) if settings.only in method.name):
        images, seconds = draw(pipe, clip, method, prompts, settings)
        rows.append(row(method.name, images, f"{seconds:.2f}"))
        contact_sheet(images).save(output.with_name(f"{output.stem}-{len(rows) - 1}.png"))
        output.write_text(table(rows, settings))  # after every method: an interruption keeps what is done
    print(table(rows, settings))


if __name__ == "__main__":
    main(parse_settings(Settings))
