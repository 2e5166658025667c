"""Time ``clip-guidance classify IMAGE`` from start to result, each time in a fresh process.

    python benchmarks/cold_start.py --runs 5 --output benchmarks/cold_start.md
    python benchmarks/cold_start.py --runs 5 --cold True

Wall-clock seconds are those until the result is on stdout, and until the process has ended. CPU seconds, user and
system, hardly depend on what else runs. The parts are CPU seconds of other fresh processes, which do one after the
other what the command does. With ``cold`` the files of all packages are dropped from the system's page
cache before each run (``posix_fadvise``), but for those that another process has mapped, such as a training with the
same torch: a copy of site-packages, given as PYTHONPATH, is read by no one else.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import clip_guidance
from clip_guidance.training.settings import parse_settings

PARTS = """
import gc, json, sys, time
gc.disable()  # as the command does while it imports
times, last = {}, 0.0  # the start of Python counts
def lap(name):
    global last
    times[name], last = time.process_time() - last, time.process_time()
import clip_guidance.cli.main
lap("start Python, import the command line")
import torch
lap("import torch")
import transformers.modeling_utils
lap("import transformers' models")
from clip_guidance.clip import CLIP
from clip_guidance.zero_shot import ZeroShotClassifier
lap("import the rest")
image, labels, model = sys.argv[1:]
clip = CLIP.from_pretrained(model)
lap("load the weights")
classifier = ZeroShotClassifier(clip, labels.split(","))
lap("encode the labels")
classifier(image)
lap("encode the image")
print(json.dumps(times))
"""


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    runs: int = 5  # fresh processes of each kind
    model: str = "emoji"  # CLIP: a packaged name, a folder, or a hub id
    labels: str = "a,b,c"  # names of the classes, separated by commas
    width: int = 640  # of the image, in pixels
    height: int = 480  # of the image, in pixels
    cold: bool = False  # drop the files of all packages from the page cache before each run
    output: Path | None = None  # Markdown file for the table
    json: bool = False  # print JSON instead of a table


@dataclass(frozen=True)
class Run:
    """Seconds of one process."""

    result: float  # wall clock until its first result was read
    ended: float
    cpu: float  # user and system
    text: str  # what it printed


def time_run(words: list[str], lines: int) -> Run:
    """Run Python with these words; the result is the line of this number.

    Raises:
        RuntimeError: it fails; with what it says on stderr.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        printed = [process.stdout.readline() for _ in range(lines)]
        result = time.perf_counter() - start
        printed += process.stdout
        if process.wait():
            errors.seek(0)
            raise RuntimeError(f"{' '.join(words)[:80]} ended with {process.returncode}: {errors.read()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(result, time.perf_counter() - start, cpu, "".join(printed))


def drop_from_page_cache(places: set[Path]) -> int:
    """Ask the system to forget the files in these folders; return their bytes."""
    dropped = 0
    for path in (path for place in places if place.is_dir() for path in place.rglob("*") if path.is_file()):
        file = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)
        dropped += path.stat().st_size
    return dropped


def measure(settings: Settings) -> list[dict[str, float | str]]:
    """Return a row for each thing timed: its median and worst seconds."""
    times: dict[str, list[float]] = {}
    packages = {Path(place) for place in (*sys.path, Path(clip_guidance.__file__).parent) if place}
    with tempfile.TemporaryDirectory() as folder:
        image = str(Path(folder) / "image.jpg")
        Image.effect_noise((settings.width, settings.height), 50).convert("RGB").save(image)
        options = ["classify", image, "--labels", settings.labels, "--model", settings.model, "--device", "cpu"]
        for _ in range(settings.runs):
            for words, lines in ((["-m", "clip_guidance.cli.main", *options], 2), (["-c", PARTS], 1)):
                if settings.cold:
                    drop_from_page_cache(packages)
                if lines == 2:  # a header and the result
                    run = time_run(words, lines)
                    found = {"until the result": run.result, "until it has ended": run.ended, "CPU of all": run.cpu}
                else:
                    found = json.loads(time_run([*words, image, settings.labels, settings.model], lines).text)
                    found = {f"CPU: {name}": seconds for name, seconds in found.items()}
                for name, seconds in found.items():
                    times.setdefault(name, []).append(seconds)
    return [{"name": name, "median": statistics.median(each), "worst": max(each)} for name, each in times.items()]


def table(rows: list[dict[str, float | str]]) -> str:
    lines = ["| seconds | median | worst |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {row['name']} | {row['median']:.2f} | {row['worst']:.2f} |" for row in rows)])


def main(settings: Settings) -> None:
    rows = measure(settings)
    if settings.json:
        print(json.dumps(rows))
    else:
        print(table(rows))
    if settings.output is not None:
        cache = "cold" if settings.cold else "warm"
        words = f"`clip-guidance classify IMAGE --labels {settings.labels}`, {settings.runs} fresh processes"
        settings.output.write_text(f"# Cold start\n\n{words}, page cache {cache}.\n\n{table(rows)}\n")


if __name__ == "__main__":
    main(parse_settings(Settings))
