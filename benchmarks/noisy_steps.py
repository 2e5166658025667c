r"""Time a step of the packaged pipeline: unguided, guided in mode "noisy", and in mode "x0", interleaved in one run.

    python benchmarks/noisy_steps.py --output benchmarks/noisy_steps.md

The towers' weights are random: what they cost does not depend on them. Times are of the processor, not of the clock.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

import clip_guidance as cg
from clip_guidance.guidance.modes.noisy import latent_probe
from clip_guidance.towers.noisy import PROBE_TEXT
from clip_guidance.training.settings import parse_settings


@dataclass(frozen=True)
class Settings:
    """What is timed."""

    rounds: int = 12  # runs of each kind, in turn
    widths: list[int] = field(default_factory=lambda: [96, 192])  # of the tower, as those of train_noisy_tower.py
    depth: int = 1  # of the tower
    patch_size: int = 2  # of the tower
    steps: int = 20  # of a run
    output: str = "benchmarks/noisy_steps.md"  # Markdown file for the table


def own_tower(pipe: Any, clip: cg.CLIP, *sizes: Any) -> cg.NoisyTower:
    """A tower with random weights that belongs to the pipeline and the CLIP."""
    tower = cg.NoisyTower(pipe.vae.config.latent_channels, clip.projection_dim, *sizes)
    tower.latent_probe.copy_(latent_probe(pipe.vae))
    tower.text_probe.copy_(clip.encode_text(PROBE_TEXT)[0])
    return tower.eval()


def millions(tower: cg.NoisyTower) -> float:
    return sum(weight.numel() for weight in tower.parameters()) / 1e6


def main(settings: Settings) -> None:
    pipe, clip = cg.load_pipeline("emoji"), cg.CLIP.from_pretrained("emoji")
    pipe.set_progress_bar_config(disable=True)
    sizes = (settings.widths, settings.depth, settings.patch_size)
    small, default = own_tower(pipe, clip, *sizes), own_tower(pipe, clip)
    named = f"noisy, a tower of widths {settings.widths}, depth {settings.depth}, patch_size {settings.patch_size}"
    kinds: dict[str, Any] = {
        "unguided": None, named: cg.Noisy(small), "noisy, the default tower": cg.Noisy(default), "x0": "x0"
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(settings.rounds + 1):
        for name in list(kinds)[:: 1 if turn % 2 else -1]:
            guidance = cg.CLIPGuidance(clip, "a red apple", 3.0, mode=kinds[name]) if kinds[name] else None
            with guidance.attach(pipe) if guidance else nullcontext():
                generator, start = torch.Generator().manual_seed(turn), time.process_time()
                pipe("a red apple", num_inference_steps=settings.steps, output_type="latent", generator=generator)
                if turn:  # the first round does not count
                    seconds[name].append((time.process_time() - start) / settings.steps)
    rows = []
    for name, took in seconds.items():
        ratio = median(a / b for a, b in zip(took, seconds["unguided"], strict=True))
        rows.append(f"| {name} | {1000 * median(took):.1f} | {ratio:.2f} |")
    text = (
        f"A step of the packaged pipeline with classifier-free guidance, one image, on {torch.get_num_threads()} "
        f"thread of a CPU: medians of {settings.rounds} runs of {settings.steps} steps. The towers have "
        f"{millions(small):.1f} and {millions(default):.1f} million parameters.\n\n"
        "| mode | ms of the processor | over unguided |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )
    Path(settings.output).write_text(text)
    print(text)


if __name__ == "__main__":
    main(parse_settings(Settings))
