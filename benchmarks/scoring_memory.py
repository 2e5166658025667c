"""Measure the peak of the resident memory of processes that score 1,000 and 10,000 small images.

    python benchmarks/scoring_memory.py --output benchmarks/scoring_memory.md

The CLIP is tiny and has random weights, so that what grows with the number of images shows.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from _scoring_inputs import prompt_of, save_clip, save_images
from scoring_throughput import Settings as ScoringSettings
from scoring_throughput import score_all
from transformers.utils import logging

from clip_guidance.clip import CLIP
from clip_guidance.metrics.job.items import ScoreItem
from clip_guidance.metrics.job.judge import make_judge
from clip_guidance.metrics.job.processes import Processes
from clip_guidance.metrics.job.run import Job
from clip_guidance.training.settings import parse_settings

FILES = 50  # that are written; all others are links to them


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    images: str = "1000,10000"  # numbers of images, separated by commas; one number is measured in this process
    batch_size: int = 16  # images per batch
    decode_threads: int = 2  # threads that read images
    output: Path | None = None  # Markdown file to append the table to


def score_small(settings: Settings, folder: Path) -> float:
    """Score many small images by the tiny CLIP; return the peak memory of this process in MiB."""
    count = int(settings.images)
    files = save_images(folder / "images", min(FILES, count), 40)
    judge = make_judge(CLIP.from_pretrained(save_clip(folder / "clip", "tiny")), ["torchmetrics"])
    for number in range(len(files), count):
        (folder / "images" / f"{number:06}.jpg").hardlink_to(files[number % len(files)])
    items = (
        ScoreItem(path, path, prompt_of(i, 8), position=i)
        for i in range(count)
        if (path := str(folder / "images" / f"{i:06}.jpg"))
    )
    options = ScoringSettings(batch_size=settings.batch_size, decode_threads=settings.decode_threads)
    work = score_all(items, [judge], Job(folder / "scores.jsonl", Processes()), options)
    if work.output.read_bytes().count(b"\n") != count:
        raise SystemExit(f"expected {count} rows")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_memory(settings: Settings, count: str) -> float:
    """Measure the peak in MiB of a fresh process that scores so many images."""
    words = ["--images", count, "--batch_size", str(settings.batch_size)]
    words += ["--decode_threads", str(settings.decode_threads)]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["peak"]


def main(settings: Settings) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    counts = settings.images.split(",")
    if len(counts) == 1:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps({"peak": score_small(settings, Path(scratch))}))
        return
    lines = ["| images | peak resident memory, MiB |", "| --- | --- |"]
    lines += [f"| {count} | {peak_memory(settings, count):.0f} |" for count in counts]
    print(*lines, sep="\n")
    if settings.output:
        with settings.output.open("a") as file:
            file.write("\n".join(lines) + "\n\n")


if __name__ == "__main__":
    main(parse_settings(Settings))
