"""Measure a training step's samples per second, beside transformers' CLIPModel and Trainer.

    python benchmarks/training_step.py --output benchmarks/training_step.md

Same architecture and weights (ours are converted from theirs), same batches already in memory, AdamW with clipping in
both, float32, the same number of threads. Each runs in a process of its own, in turns, and the median over the rounds
counts; the first steps are left out.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clip_guidance.training.settings import parse_settings

EOS = 3071


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    output: str = ""  # Markdown file for the table, which is printed too
    batch_size: int = 64  # pairs per step
    steps: int = 8  # per run
    warmup: int = 2  # first steps, which are not timed
    rounds: int = 3  # runs of each row, of which the median counts
    device: str = "cpu"  # torch device
    chunk_size: int = 16  # of the row with chunks: pairs that go through the towers at a time
    side: str = ""  # run this row alone and print JSON, as this program calls itself


def reference() -> Any:
    """Make a transformers CLIP of about the size of the packaged one."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    width = dict(hidden_size=192, intermediate_size=768, num_attention_heads=6, hidden_act="gelu")
    text = dict(vocab_size=3072, max_position_embeddings=32, num_hidden_layers=3, eos_token_id=EOS, **width)
    vision = dict(image_size=64, patch_size=8, num_hidden_layers=6, **width)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def batch(settings: Settings) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, EOS, (settings.batch_size, 16), generator=generator)
    input_ids[:, -1] = EOS
    return {"input_ids": input_ids, "pixel_values": torch.randn(settings.batch_size, 3, 64, 64, generator=generator)}


def rate(times: list[float], settings: Settings) -> float:
    return settings.batch_size * (len(times) - 1 - settings.warmup) / (times[-1] - times[settings.warmup])


def theirs(settings: Settings, folder: str) -> float:
    """Measure samples per second of transformers' Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    data = batch(settings)
    rows = [{name: value[i] for name, value in data.items()} for i in range(settings.batch_size)]
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=settings.batch_size,
        max_steps=settings.steps,
        learning_rate=1e-3,
        weight_decay=0.1,
        max_grad_norm=1.0,
        report_to=[],
        save_strategy="no",
        use_cpu=settings.device == "cpu",
        disable_tqdm=True,
        remove_unused_columns=False,
    )

    def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} | {"return_loss": True}

    model = reference().train()
    Trainer(model, arguments, train_dataset=rows * settings.steps, data_collator=collate, callbacks=[Clock()]).train()
    return rate(times, settings)


def ours(settings: Settings, folder: str, chunk_size: int | None = None) -> float:
    """Measure samples per second of this package's loop and objective."""
    from clip_guidance.clip import CLIP
    from clip_guidance.clip.image_processor import ImageProcessor
    from clip_guidance.training.launch import make_accelerator
    from clip_guidance.training.objective import ContrastiveObjective
    from clip_guidance.training.trainer import Plan, fit

    clip = CLIP.from_transformers(reference(), None, ImageProcessor(64)).train()
    objective = ContrastiveObjective(clip.to(settings.device), chunk_size=chunk_size)
    data, times = batch(settings), []

    def loss(model: Any, step: int) -> dict[str, torch.Tensor]:
        return {"loss": model(*(data[name].to(settings.device) for name in ("pixel_values", "input_ids")), seed=step)}

    def after_step(done: int) -> dict[str, float]:
        times.append(time.perf_counter())
        return {}

    plan = Plan(settings.steps, 1e-3, 1, 0.1, 1.0, seed=0, log_every=10**9, save_every=10**9)
    fit(make_accelerator(), objective, loss, plan, Path(folder), after_step=after_step)
    return rate(times, settings)


SIDES = {
    "transformers, CLIPModel and Trainer": lambda settings, folder: theirs(settings, folder),
    "clip_guidance": lambda settings, folder: ours(settings, folder),
    "clip_guidance, in chunks": lambda settings, folder: ours(settings, folder, settings.chunk_size),
}


def main(settings: Settings) -> None:
    if settings.side:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(SIDES[settings.side](settings, folder)))
        return
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    same = [f"--{name}={getattr(settings, name)}" for name in ("batch_size", "steps", "warmup", "device", "chunk_size")]
    for _ in range(settings.rounds):
        for side in SIDES:
            done = subprocess.run([sys.executable, __file__, *same, "--side", side], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{side}: {done.stderr}")
            rates[side].append(json.loads(done.stdout.splitlines()[-1]))
    base = statistics.median(rates["transformers, CLIPModel and Trainer"])
    lines = ["| training step | samples / s (all rounds) | ratio |", "| --- | --- | --- |"]
    for side, found in rates.items():
        each = ", ".join(f"{value:.1f}" for value in found)
        lines.append(f"| {side} | {statistics.median(found):.1f} ({each}) | {statistics.median(found) / base:.2f} |")
    head = (
        "# A whole training step beside transformers' Trainer\n\n"
        f"`python benchmarks/training_step.py`: {settings.batch_size} pairs, ViT of 6 layers on 64 tokens and a text "
        f"tower of 3 on 16, width 192, float32, {settings.device}, {torch.get_num_threads()} threads; chunks of "
        f"{settings.chunk_size}."
    )
    page = head + "\n\n" + "\n".join(lines) + "\n"
    print(page)
    if settings.output:
        Path(settings.output).write_text(page)


if __name__ == "__main__":
    main(parse_settings(Settings))
