r"""Turn finished runs into the models of the package: float16 safetensors and json alone.

    python training/package_models.py --clip runs/emoji-clip --judge runs/emoji-judge --diffusion runs/emoji-diffusion \
        --noisy_tower runs/emoji-noisy-tower/final

A new CLIP takes its tower of noisy latents with it: package one that was trained with it. Run
``training/domain_statistics.py`` afterwards: it measures what the new CLIPs know.
The pipeline's text encoder is the CLIP's text tower, so it is stored once, with the CLIP. The model cards
(``README.md`` in each folder) are written by hand and left alone.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

import clip_guidance
from clip_guidance.clip import CLIP
from clip_guidance.guidance.modes.noisy import FOLDER
from clip_guidance.towers.noisy import NoisyTower
from clip_guidance.training.settings import parse_settings

BUDGET = 64e6  # bytes of all packaged weights together


@dataclass(frozen=True)
class Settings:
    """What to package, and where."""

    clip: str | None = None  # folder of the CLIP that conditions and steers
    judge: str | None = None  # folder of the CLIP that judges
    diffusion: str | None = None  # folder of the stock pipeline
    noisy_tower: str | None = None  # folder of the tower of noisy latents that belongs to the CLIP
    name: str = "emoji"  # of the packaged model
    output: str = str(Path(clip_guidance.__file__).parent / "models")  # folder of the packaged models


def save_half(module: torch.nn.Module, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    module.half().save_pretrained(folder)


def main(settings: Settings) -> None:
    models = Path(settings.output)
    if settings.clip:
        save_half(CLIP.from_pretrained(settings.clip), models / settings.name / "clip")
    if settings.noisy_tower:
        tower = NoisyTower.from_pretrained(settings.noisy_tower)
        tower.register_to_config(_name_or_path=f"{settings.name}/clip/{FOLDER}")  # not where it was trained
        save_half(tower, models / settings.name / "clip" / FOLDER)
    if settings.judge:
        save_half(CLIP.from_pretrained(settings.judge), models / f"{settings.name}-judge" / "clip")
    if settings.diffusion:
        pipeline = StableDiffusionPipeline.from_pretrained(settings.diffusion, use_safetensors=True)
        for part in ("unet", "vae"):
            module = getattr(pipeline, part)
            module.register_to_config(_name_or_path=f"{settings.name}/{part}")  # not where it was trained
            save_half(module, models / settings.name / part)
        pipeline.scheduler.save_pretrained(models / settings.name / "scheduler")
    sizes = {path: path.stat().st_size for path in sorted(models.rglob("*.safetensors"))}
    for path, size in sizes.items():
        print(f"{size / 1e6:6.2f} MB  {path.relative_to(models)}")
    total = sum(sizes.values())
    print(f"{total / 1e6:6.2f} MB  of {BUDGET / 1e6:.0f}")
    if total > BUDGET:
        raise SystemExit("the packaged weights exceed their budget")


if __name__ == "__main__":
    main(parse_settings(Settings))
