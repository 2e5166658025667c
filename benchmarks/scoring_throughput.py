"""Time scoring from JPEG files, beside transformers' and torchmetrics' own loops.

    python benchmarks/scoring_throughput.py --output benchmarks/scoring_throughput.md

Weights are random, of the shape of ViT-B/32; images are generated. All loops have the same threads of torch and the
same batches; ours reads, hashes, decodes and acknowledges every row on the disk besides. Repeats are interleaved and a
ratio is the median over repeats, since the machine may be busy; CPU time tells what was computed. torchmetrics is
measured where it is installed and runs.
"""

from __future__ import annotations

import functools
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _scoring_inputs import prompt_of, save_clip, save_images
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.utils import logging

from clip_guidance._threads import ordered_map
from clip_guidance.clip import CLIP
from clip_guidance.metrics.job.items import ScoreItem
from clip_guidance.metrics.job.judge import Judge, make_judge
from clip_guidance.metrics.job.processes import Processes
from clip_guidance.metrics.job.run import Job, Options, score_items
from clip_guidance.training.settings import parse_settings


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    images: int = 64  # number of images
    side: int = 512  # of the images, in pixels
    per_prompt: int = 1  # images that share a prompt
    model: str = "vit-b-32"  # size of the CLIP of random weights: vit-b-32 or tiny
    batch_size: int = 16  # images per batch
    torch_threads: int = 1  # threads that encode
    decode_threads: int = 2  # threads that read images
    repeats: int = 3  # timed runs of each loop
    only: str = ""  # beginnings of the names of the loops to run, separated by commas
    output: Path | None = None  # Markdown file to append the table to
    json: bool = False  # print JSON instead of a table


def pairs(files: list[str], settings: Settings) -> Iterator[tuple[list[Image.Image], list[str]]]:
    """Batches, as the documentation of the peers reads them."""
    numbered = iter(enumerate(files))
    while batch := list(islice(numbered, settings.batch_size)):
        images = [Image.open(path).convert("RGB") for _, path in batch]
        yield images, [prompt_of(number, settings.per_prompt) for number, _ in batch]


def by_transformers(files: list[str], folder: Path, settings: Settings) -> Callable[[], list[float]]:
    """``CLIPModel`` with ``CLIPProcessor``."""
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer, processor = CLIPTokenizer.from_pretrained(folder), CLIPImageProcessorPil.from_pretrained(folder)
    processor = CLIPProcessor(processor, tokenizer)

    @torch.inference_mode()
    def loop() -> list[float]:
        scores: list[float] = []
        for images, prompts in pairs(files, settings):
            inputs = processor(text=prompts, images=images, padding=True, truncation=True, return_tensors="pt")
            output = model(**inputs)
            scores += (100 * (output.image_embeds * output.text_embeds).sum(-1)).tolist()
        return scores

    return loop


def by_torchmetrics(files: list[str], folder: Path, settings: Settings) -> Callable[[], list[float]]:
    """``CLIPScore``, which tells a mean only.

    Raises:
        Exception: it is not installed, or does not work with this transformers.
    """
    from torchmetrics.multimodal.clip_score import CLIPScore

    metric = CLIPScore(str(folder))
    metric.update(torch.zeros(3, 64, 64, dtype=torch.uint8), "a")

    @torch.inference_mode()
    def loop() -> list[float]:
        metric.reset()
        for images, prompts in pairs(files, settings):
            metric.update([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images], prompts)
        return [metric.compute().item()]

    return loop


def by_us(
    files: list[str], folder: Path, settings: Settings, draft: bool = False, **options: Any
) -> Callable[[], list[float]]:
    """Do what ``clip-guidance score`` does once its models are loaded."""
    judge = make_judge(CLIP.from_pretrained(folder), ["torchmetrics"], draft=draft, **options)

    def loop() -> list[float]:
        judge.texts._known.clear()
        with tempfile.TemporaryDirectory() as scratch:
            work = Job(Path(scratch) / "scores.jsonl", Processes())
            prompts = (prompt_of(i, settings.per_prompt) for i in range(len(files)))
            given = zip(files, prompts, strict=True)
            items = (ScoreItem(path, path, prompt, position=i) for i, (path, prompt) in enumerate(given))
            return scores_of(score_all(items, [judge], work, settings, draft))

    return loop


def score_all(
    items: Iterator[ScoreItem], judges: list[Judge], work: Job, settings: Settings, draft: bool = False
) -> Job:
    """Scores and writes the output."""
    work.begin(judges)
    options = Options(settings.batch_size, settings.decode_threads, draft)
    for done in score_items(items, judges, work, options):
        if done.failures:
            raise SystemExit(f"{done.failures[0].image}: {done.failures[0].reason}")
    work.finish()
    work.write()
    return work


def scores_of(work: Job) -> list[float]:
    return [json.loads(line)["score"] for line in work.output.read_text().splitlines()]


def reading_by_transformers(files: list[str], folder: Path, settings: Settings) -> Callable[[], list[float]]:
    """Decode and preprocess alone, which bounds the speed with a quick encoder, as on a GPU."""
    processor = CLIPImageProcessorPil.from_pretrained(folder)

    def loop() -> list[float]:
        for images, _ in pairs(files, settings):
            processor(images=images, return_tensors="pt")
        return []

    return loop


def reading_by_us(files: list[str], folder: Path, settings: Settings, draft: bool = False) -> Callable[[], list[float]]:
    """Decode and preprocess in threads."""
    clip = CLIP.from_pretrained(folder)
    side = 2 * clip.image_processor.resize_to

    def read(path: str) -> Tensor:
        if not draft:
            return clip.preprocess(Path(path).read_bytes())
        image = Image.open(io.BytesIO(Path(path).read_bytes()))
        image.draft("RGB", (side, side))
        return clip.preprocess(image)

    def loop() -> list[float]:
        pixels = ordered_map(read, files, settings.decode_threads, 2 * settings.batch_size)
        while batch := list(islice(pixels, settings.batch_size)):
            torch.stack(batch)
        return []

    return loop


LOOPS: dict[str, Callable[..., Callable[[], list[float]]]] = {
    "transformers": by_transformers,
    "torchmetrics": by_torchmetrics,
    "ours": by_us,
    "ours, --dtype bfloat16": functools.partial(by_us, dtype=torch.bfloat16),
    "ours, --draft": functools.partial(by_us, draft=True),
    "reading only, transformers": reading_by_transformers,
    "reading only, ours": reading_by_us,
    "reading only, ours, --draft": functools.partial(reading_by_us, draft=True),
}


def measure(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    """Return a row per loop: speed, ratio to transformers' loop, largest difference of a score."""
    files = save_images(folder / "images", settings.images, settings.side)
    weights = save_clip(folder / "clip", settings.model)
    wanted = settings.only.split(",")
    loops: dict[str, Callable[[], list[float]]] = {}
    rows: list[dict[str, Any]] = []
    for name, make in LOOPS.items():
        if any(name.startswith(beginning) for beginning in wanted):
            try:
                loops[name] = make(files, weights, settings)
            except Exception as error:  # a peer that is absent or broken
                rows.append({"name": name, "note": f"{type(error).__name__}: {error}".splitlines()[0]})
    found = {name: loop() for name, loop in loops.items()}  # warms up
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    computed: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(settings.repeats):
        for name, loop in loops.items():
            start, cpu = time.perf_counter(), time.process_time()
            loop()
            seconds[name].append(time.perf_counter() - start)
            computed[name].append(time.process_time() - cpu)
    for name in loops:
        peer = "reading only, transformers" if name.startswith("reading") else "transformers"
        row: dict[str, Any] = {"name": name, "rate": len(files) / statistics.median(seconds[name])}
        row["cpu_ms"] = 1000 * statistics.median(computed[name]) / len(files)
        if peer in seconds:
            row["ratio"] = median_ratio(seconds[peer], seconds[name])
            row["cpu_ratio"] = median_ratio(computed[peer], computed[name])
        if found[name] and peer in found:
            expected = found[peer] if len(found[name]) > 1 else [statistics.fmean(found[peer])]
            row["difference"] = max(abs(a - b) for a, b in zip(found[name], expected, strict=True))
        rows.append(row)
    return rows


def median_ratio(peer: list[float], own: list[float]) -> float:
    """How many times as quick; of each repeat, since the load of the machine changes."""
    return statistics.median(a / b for a, b in zip(peer, own, strict=True))


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| loop | images / s | ratio | CPU ms / image | ratio | largest difference of a score |"]
    lines.append("| --- " * 6 + "|")
    for row in rows:
        if "note" in row:
            lines.append(f"| {row['name']} | not measured: {row['note']} | | | | |")
            continue
        ratios = [f"{row[name]:.2f}" if name in row else "" for name in ("ratio", "cpu_ratio")]
        difference = f"{row['difference']:.1e}" if "difference" in row else ""
        numbers = [f"{row['rate']:.1f}", ratios[0], f"{row['cpu_ms']:.1f}", ratios[1], difference]
        lines.append(f"| {row['name']} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def main(settings: Settings) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(settings.torch_threads)
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(settings, Path(scratch))
    shown = replace(settings, output=None)
    text = f"{shown.images} JPEG files of {shown.side} × {shown.side}, {shown.per_prompt} per prompt, "
    text += f"{shown.model}, batches of {shown.batch_size}, torch with {shown.torch_threads} and decoding with "
    text += f"{shown.decode_threads} threads:\n\n{table(rows)}"
    print(json.dumps(rows) if settings.json else text)
    if settings.output:
        with settings.output.open("a") as file:
            file.write(text + "\n\n")


if __name__ == "__main__":
    main(parse_settings(Settings))
