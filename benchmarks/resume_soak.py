"""Kill a training run again and again; compare the result with a calm run's bits.

    python benchmarks/resume_soak.py --data ../shared/data/emoji64-val.parquet --output benchmarks/resume_soak.md

The run is ``training/train_clip.py`` with small towers, random views, an average of the weights and a checkpoint every
few steps. It is killed with SIGKILL after a random time, mostly while it trains, and started again with the same
command, until it was killed ``kills`` times and then left to end.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from clip_guidance.training.log import read_log
from clip_guidance.training.settings import parse_settings

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    data: str  # captioned images
    output: str = ""  # Markdown file for the report, which is printed too
    kills: int = 20  # of the run
    steps: int = 600  # optimizer steps of the run
    save_every: int = 3  # steps from one checkpoint to the next
    max_seconds_to_kill: float = 6.0  # a launch is killed after training for a random time up to this
    seed: int = 0  # of the moments of the kills


def command(settings: Settings, folder: Path) -> list[str]:
    options = {
        "data": settings.data,
        "output": folder,
        "steps": settings.steps,
        "save_every": settings.save_every,
        "image_size": 32,
        "image_width": 64,
        "image_layers": 2,
        "patch_size": 8,
        "text_width": 64,
        "text_layers": 1,
        "batch_size": 32,
        "chunk_size": 16,
        "ema_decay": 0.9,
        "random_flip": True,
        "grayscale_probability": 0.2,
        "erasing_probability": 0.2,
        "max_noise_std": 0.1,
        "log_every": 1,
        "exclude_captions_containing": "skin tone",
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    return [sys.executable, str(ROOT / "training" / "train_clip.py"), *words]


def run(settings: Settings, folder: Path, wait: float | None = None) -> bool:
    """Start the run, kill it ``wait`` seconds after its first new step, and tell whether it was."""
    log = folder / "log.jsonl"
    before = log.stat().st_size if log.is_file() else 0
    process = subprocess.Popen(command(settings, folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while wait is not None and process.poll() is None and (log.stat().st_size if log.is_file() else 0) == before:
            time.sleep(0.01)
        process.wait(wait)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(errors)
    return process.returncode != 0


def differences(one: Path, other: Path) -> list[str]:
    """Names of the tensors of the final checkpoint and CLIP that differ in any bit."""
    found = []
    for path in (*sorted((one / "checkpoints").glob("step-*")), one / "model.safetensors"):
        a, b = load_file(path), load_file(other / path.relative_to(one))
        found += [f"{path.name}: {name}" for name in a.keys() | b.keys() if not _same(a.get(name), b.get(name))]
    return sorted(found)


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and a.dtype == b.dtype and a.equal(b)


def main(settings: Settings) -> None:
    rng, lost, kills = random.Random(settings.seed), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = Path(scratch, "whole"), Path(scratch, "killed")
        for folder in (whole, killed):
            folder.mkdir()
        run(settings, whole)
        for path in whole.glob("token*.json"):  # one vocabulary: learning it anew may order ties in another way
            (killed / path.name).write_bytes(path.read_bytes())
        while kills < settings.kills:
            if not run(settings, killed, rng.uniform(0, settings.max_seconds_to_kill)):
                raise SystemExit(f"the run ended after {kills} kills: use more --steps or less --max_seconds_to_kill")
            kills += 1
            done = max(row["step"] for row in read_log(killed / "log.jsonl"))
            saved = max((int(path.stem[5:]) for path in (killed / "checkpoints").glob("step-*")), default=0)
            lost += done - saved
            print(f"kill {kills}: after step {done}, last checkpoint {saved}", flush=True)
        run(settings, killed)
        found = differences(whole, killed)
    verdict = "identical, every bit of the last two checkpoints and of the CLIP" if not found else f"differ: {found}"
    page = (
        "# Killed and resumed\n\n"
        f"`python benchmarks/resume_soak.py`: {settings.steps} steps, a checkpoint every {settings.save_every}, killed "
        f"with SIGKILL {kills} times at random moments (seed {settings.seed}), {lost} steps of which had to be done "
        f"again. Beside the undisturbed run: {verdict}.\n"
    )
    print(page)
    if settings.output:
        Path(settings.output).write_text(page)
    if found:
        raise SystemExit(1)


if __name__ == "__main__":
    main(parse_settings(Settings))
