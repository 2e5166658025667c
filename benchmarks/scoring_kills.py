"""Kill and resume a scoring run again and again; compare its result with an undisturbed run's.

    python benchmarks/scoring_kills.py --format parquet   # or jsonl, csv

A process runs ``clip-guidance score --resume`` over some images and tells through a pipe how many it encodes. It is
killed with SIGKILL at a random moment, also while it opens its files or writes the output, until that has happened
``kills`` times; then it may finish. The output must be, to the last bit, that of the run that was left alone: every row
once, the same values. What was acknowledged must not be computed again: a kill costs at most the block under way.
Processes are forked: no imports.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from clip_guidance.cli.main import run as command_line
from clip_guidance.metrics.job.judge import Judge
from clip_guidance.metrics.job.store import ScoreStore
from clip_guidance.training.settings import parse_settings


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    format: str = "jsonl"  # of the scores: jsonl, csv or parquet
    kills: int = 20  # processes to kill
    images: int = 240  # number of images
    batch_size: int = 8  # images per batch
    max_share_to_kill: float = 0.7  # a process is killed after a random share of a whole run's time up to this
    seed: int = 0  # of weights, images and the moments of the kills
    json: bool = False  # print JSON instead of a table


def save_tiny_clip(folder: Path, seed: int) -> Path:
    """Save a transformers CLIP of random weights, with one token per letter."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({token: i for i, token in enumerate(words)}, [], model_max_length=24)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **layers,
        **{"vocab_size": len(words), "max_position_embeddings": 24, "eos_token_id": tokenizer.eos_token_id},
        **{"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(
            CLIPConfig(text_config=text, vision_config={**layers, "image_size": 32, "patch_size": 8}, projection_dim=12)
        )
        for parameter in model.parameters():  # the usual initialisation leaves all embeddings alike
            torch.nn.init.normal_(parameter, std=0.3)
    size = {"height": 32, "width": 32}
    for part in (model, tokenizer, CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)):
        part.save_pretrained(folder)
    return folder


def make_work(folder: Path, settings: Settings) -> Path:
    """Images, one of them corrupt, and a table of their prompts."""
    noise = np.random.default_rng(settings.seed)
    folder.mkdir()
    table = folder / "pairs.jsonl"
    with table.open("w") as file:
        for number in range(settings.images):
            name = f"{number:04}.png"
            Image.fromarray(noise.integers(0, 256, (48, 40, 3), dtype=np.uint8)).save(folder / name)
            file.write(json.dumps({"image": name, "prompt": f"prompt {'abc'[number % 3]} {number // 7}"}) + "\n")
    (folder / f"{settings.images // 2:04}.png").write_bytes(b"no image")
    return table


def score(words: list[str], tell: int | None = None) -> int:
    """Run the command line silently, tell how many images are encoded, return the exit code."""
    encode = Judge.encode
    if tell is not None:

        def telling(self: Judge, pixel_values: Any) -> Any:
            os.write(tell, bytes([len(pixel_values)]))
            return encode(self, pixel_values)

        Judge.encode = telling  # type: ignore[method-assign]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
            command_line(words)
    except SystemExit as exit:
        if exit.code not in (0, 1):
            print(err.getvalue(), file=sys.stderr)
        return int(exit.code or 0)
    finally:
        Judge.encode = encode  # type: ignore[method-assign]
    return 0


def attempt(words: list[str], wait: float | None) -> tuple[bool, int, int]:
    """Run a process and kill it; return whether it was, its exit code and the encoded images."""
    source, sink = os.pipe()
    process = os.fork()
    if process == 0:
        code = 2
        try:
            os.close(source)
            code = score(words, sink)
        finally:
            os._exit(code)
    os.close(sink)
    if wait is not None:
        time.sleep(wait)
        os.kill(process, signal.SIGKILL)
    with os.fdopen(source, "rb") as pipe:
        encoded = sum(pipe.read())
    _, status = os.waitpid(process, 0)
    killed = os.WIFSIGNALED(status)
    return killed, 0 if killed else os.waitstatus_to_exitcode(status), encoded


def acknowledged(output: Path) -> int:
    """Rows that the files of a run hold."""
    held: set[tuple[str, str, str]] = set()
    for path in (path for path in output.parent.iterdir() if re.search(r"resumed.*\.partial(-\d+)?$", path.name)):
        with ScoreStore(path) as file:
            held |= set(file._db.execute("SELECT image, prompt, record FROM rows").fetchall())
    return len(held)


def content(path: Path) -> Any:
    """Read what a file of scores holds, to the last bit."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path).to_pylist()
    return path.read_bytes()


def run(settings: Settings, folder: Path) -> dict[str, Any]:
    """Kill and resume, again and again; compare at the end."""
    rng = random.Random(settings.seed)
    table, clip = make_work(folder / "images", settings), save_tiny_clip(folder / "clip", settings.seed)
    same = ["score", "--prompts-file", str(table), "--model", str(clip), "--batch-size", str(settings.batch_size)]
    same += ["--definition", "torchmetrics", "--definition", "hessel"]
    alone, output = (folder / f"{name}.{settings.format}" for name in ("alone", "resumed"))
    start = time.monotonic()
    _, code, needed = attempt([*same, "--output", str(alone)], None)
    whole = time.monotonic() - start
    faults = [] if code == 1 else [f"the run left alone ended with {code}, expected 1 for the corrupt image"]

    kills, midway, finished, encoded, lost, least = 0, 0, 0, 0, 0, 0
    while kills < settings.kills or not output.exists():
        wait = whole * rng.uniform(0, settings.max_share_to_kill) if kills < settings.kills else None
        killed, code, more = attempt([*same, "--output", str(output), "--resume"], wait)
        kills, encoded = kills + killed, encoded + more
        if not killed and code != 1:
            faults.append(f"a resumed run ended with {code}")
            break
        if output.exists():
            finished += 1
            if content(output) != content(alone):
                faults.append(f"after kill {kills} the output differs from that of the run left alone")
            lost += max(0, encoded - needed)
            encoded, least = 0, 0
            for path in output.parent.glob(f"{output.name}*"):  # begin anew while kills are left
                if kills < settings.kills:
                    path.unlink()
        else:
            held = acknowledged(output)
            if held < least:
                faults.append(f"kill {kills}: {least} rows were acknowledged, {held} are there")
            midway += killed and least < held
            least = held
    if lost > kills * settings.batch_size:
        faults.append(f"{lost} images were encoded again, more than a block of {settings.batch_size} a kill")
    return {
        "format": settings.format,
        "kills": kills,
        "of which new rows were acknowledged before": midway,
        "runs finished and compared": finished,
        "images": settings.images,
        "encoded again": lost,
        "faults": faults,
    }


def main(settings: Settings) -> None:
    torch.set_num_threads(1)  # a forked process has no other threads
    with tempfile.TemporaryDirectory() as scratch:
        found = run(settings, Path(scratch))
    if settings.json:
        print(json.dumps(found, indent=2))
    else:
        names = [name for name in found if name != "faults"]
        print("| " + " | ".join([*names, "faults"]) + " |")
        print("| --- " * (len(names) + 1) + "|")
        print("| " + " | ".join(str(found[name]) for name in names) + f" | {len(found['faults'])} |")
        print(*found["faults"], sep="\n")
    if found["faults"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main(parse_settings(Settings))
