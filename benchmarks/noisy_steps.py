r"""Time a step of the packaged pipeline: unguided, and in the modes "noisy", "x0" and "blend", all in one run.

    python benchmarks/noisy_steps.py --output benchmarks/noisy_steps.md

The kinds take turns. Times are of the processor, not of the clock.
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
    steps: int = 20  # of a run
    batch_sizes: list[int] = field(default_factory=lambda: [1, 16])  # images of a run
    output: str = "benchmarks/noisy_steps.md"  # Markdown file for the table


def default_tower(pipe: Any, clip: cg.CLIP) -> cg.NoisyTower:
    """A tower of the default sizes with random weights that belongs to the pipeline and the CLIP."""
    tower = cg.NoisyTower(pipe.vae.config.latent_channels, clip.projection_dim)
    tower.latent_probe.copy_(latent_probe(pipe.vae))
    tower.text_probe.copy_(clip.encode_text(PROBE_TEXT)[0])
    return tower.eval()


def main(settings: Settings) -> None:
    pipe, clip = cg.load_pipeline("emoji"), cg.CLIP.from_pretrained("emoji")
    pipe.set_progress_bar_config(disable=True)
    kinds: dict[str, Any] = {
        "unguided": None, "noisy, the packaged tower": "noisy",
        "noisy, a tower of the default sizes": cg.Noisy(default_tower(pipe, clip)), "x0": "x0", "blend": "blend",
    }  # fmt: skip
    tables = [f"Images: {size}\n\n{timed(pipe, clip, kinds, size, settings)}" for size in settings.batch_sizes]
    text = (
        f"A step of the packaged pipeline with classifier-free guidance on {torch.get_num_threads()} thread of a CPU: "
        f"medians of {settings.rounds} runs of {settings.steps} steps.\n\n" + "\n".join(tables)
    )
    Path(settings.output).write_text(text)
    print(text)


def timed(pipe: Any, clip: cg.CLIP, kinds: dict[str, Any], size: int, settings: Settings) -> str:
    """Time every kind in turn on so many images; return a table."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    call = {"num_inference_steps": settings.steps, "num_images_per_prompt": size, "output_type": "latent"}
    for turn in range(settings.rounds + 1):
        for name in list(kinds)[:: 1 if turn % 2 else -1]:
            guidance = cg.CLIPGuidance(clip, "a red apple", 3.0, mode=kinds[name]) if kinds[name] else None
            with guidance.attach(pipe) if guidance else nullcontext():
                generator, start = torch.Generator().manual_seed(turn), time.process_time()
                pipe("a red apple", generator=generator, **call)
                if turn:  # the first round does not count
                    seconds[name].append((time.process_time() - start) / settings.steps)
    rows = []
    for name, took in seconds.items():
        ratio = median(a / b for a, b in zip(took, seconds["unguided"], strict=True))
        rows.append(f"| {name} | {1000 * median(took):.1f} | {ratio:.2f} |")
    return "| mode | ms of the processor | over unguided |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    main(parse_settings(Settings))
