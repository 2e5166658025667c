"""Kill a process that changes an image index, again and again; check that nothing is lost.

    python benchmarks/index_kills.py --store folder   # or file (Milvus, embedded), server (Milvus over the network)

A process adds, deletes and compacts at random, and tells through a pipe what it is about to do and what the index has
acknowledged. It is killed with SIGKILL at a random moment; one in five while it opens the index. Then the index is
opened, and must hold exactly what was acknowledged: every image with its vector, found by a search for it, and
nothing that was deleted. Only what was under way may be as before or as after. Processes are forked: no imports.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clip_guidance.clip import CLIP, CLIPConfig
from clip_guidance.index import ImageIndex
from clip_guidance.training.settings import parse_settings


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    store: str = "folder"  # "folder"; or Milvus in a "file" or behind a "server"
    kills: int = 20  # processes to kill
    images: int = 120  # in the index, at most
    max_seconds_to_kill: float = 0.4  # a process is killed after a random time up to this
    seed: int = 0  # of the images, the changes and the moments of the kills
    json: bool = False  # print JSON instead of a table


@dataclass
class State:
    """What the index must hold."""

    present: set[str] = field(default_factory=set)
    under_way: set[str] = field(default_factory=set)
    action: str = "open"
    acknowledged: int = 0

    def read(self, line: dict[str, Any]) -> None:
        """Read a message of the process at work."""
        if "begin" in line:
            self.action, self.under_way = line["begin"], set(line["names"])
            return
        self.present = (self.present | set(line["added"])) - set(line["removed"])
        self.under_way -= {*line["added"], *line["removed"]}
        self.acknowledged += len(line["added"]) + len(line["removed"])
        if line["done"]:
            self.action, self.under_way = "between", set()


def work(index: ImageIndex, tell: Callable[..., None], folder: Path, names: list[str], rng: random.Random) -> None:
    """Change the index without end."""
    while True:
        action = rng.choices(["add", "delete", "compact"], [6, 3, 1])[0]
        chosen = [] if action == "compact" else rng.sample(names, 24 if action == "add" else 9)
        tell(begin=action, names=chosen)
        if action == "add":
            for changes in index.iter_add([folder / name for name in chosen], batch_size=4):
                tell(added=[Path(path).name for path in changes.added], removed=[], done=False)
        removed = index.delete([folder / name for name in chosen]) if action == "delete" else []
        if action == "compact":
            index.compact()
        tell(added=[], removed=[Path(path).name for path in removed], done=True)


def inspect(index: ImageIndex, embeds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return what the index holds, and what of it is wrong."""
    with index._store.reading() as vectors:
        held = {Path(entry.path).name: vectors[entry.row] for entry in index.entries()}
    wrong = [name for name, vector in held.items() if not np.allclose(vector, embeds[name], atol=1e-5)]
    queries = np.array([embeds[name] for name in held])
    hits = index.search_embeds(queries, index.fingerprint, k=len(embeds)) if held else []
    wrong += [name for name, found in zip(held, hits, strict=True) if Path(found[0].path).name != name]
    wrong += [f"{len(found)} of {len(held)} found" for found in hits if len(found) != len(held)][:1]
    damage = [message for (message,) in index._store._db.run("PRAGMA integrity_check") if message != "ok"]
    return {"held": sorted(held), "wrong": wrong + damage}


@contextmanager
def child(task: Callable[[Callable[..., None]], None]) -> Iterator[tuple[int, int]]:
    """Another process that runs a task, and the end of the pipe through which it tells."""
    source, sink = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(source)
        try:
            task(lambda **line: os.write(sink, (json.dumps(line) + "\n").encode()) and None)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(sink)
    try:
        yield process, source
    finally:
        os.close(source)


def lines(source: int, until: float | None = None, on_end: Callable[[], None] = lambda: None) -> Iterator[dict]:
    """Read complete lines of a pipe; at its end call ``on_end`` and read what is left too."""
    rest = b""
    while True:
        wait = None if until is None else max(0.0, until - time.monotonic())
        if not select.select([source], [], [], wait)[0]:
            on_end()
            until = None
            continue
        data = os.read(source, 1 << 16)
        if not data:
            return
        *whole, rest = (rest + data).split(b"\n")
        yield from map(json.loads, whole)


def kill_once(
    opened: Callable[[], ImageIndex], task: Callable[..., None], state: State, wait: float, working: bool
) -> None:
    """Kill a process some seconds after its start or its first message, and read what it told."""

    def run(tell: Callable[..., None]) -> None:
        task(opened(), tell)

    state.action, state.under_way = "open", set()
    with child(run) as (process, source):
        if working:
            select.select([source], [], [])
        for line in lines(source, time.monotonic() + wait, lambda: os.kill(process, signal.SIGKILL)):
            state.read(line)
        _, status = os.waitpid(process, 0)
    if not os.WIFSIGNALED(status):
        raise SystemExit("the process at work ended before it was killed")


def look(opened: Callable[[], ImageIndex], embeds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Open the index in a process whose connections and threads the next ones do not inherit."""

    def run(tell: Callable[..., None]) -> None:
        with opened() as index:
            tell(**inspect(index, embeds))

    with child(run) as (process, source):
        found = list(lines(source))
        os.waitpid(process, 0)
    if len(found) != 1:
        raise SystemExit("the index could not be opened after a kill")
    return found[0]


@contextmanager
def address(store: str, folder: Path) -> Iterator[str]:
    """Yield the index to open; for "server" also run the server behind it."""
    if store != "server":
        yield str(folder / {"folder": "index", "file": "index.db"}[store])
        return
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    words = ["server", "--data-dir", str(folder / "server"), "--host", "127.0.0.1", "--port", str(port)]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-m", "milvus_lite", *words], **silent)
    try:
        for _ in range(300):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def run(settings: Settings, folder: Path, place: str) -> dict[str, Any]:
    """Kill and look, again and again."""
    rng, noise = random.Random(settings.seed), np.random.default_rng(settings.seed)
    names = [f"{number:03}.png" for number in range(settings.images)]
    for name in names:
        Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / name)
    clip = tiny_clip(settings.seed)
    embeds = dict(zip(names, clip.encode_image([folder / name for name in names]).numpy(), strict=True))
    catalogue = {} if settings.store == "folder" else {"catalogue": folder / "catalogue"}

    def opened() -> ImageIndex:
        return ImageIndex.open(place, clip, **catalogue)

    state, moments, faults = State(), Counter(), []
    for number in range(settings.kills):
        worker = partial(work, folder=folder, names=names, rng=random.Random(rng.random()))
        kill_once(opened, worker, state, rng.uniform(0, settings.max_seconds_to_kill), working=number % 5 > 0)
        moments[state.action] += 1
        found = look(opened, embeds)
        held = set(found["held"])
        lost, ghosts = state.present - state.under_way - held, held - state.under_way - state.present
        if lost or ghosts or found["wrong"]:
            faults.append(f"kill {number + 1}: lost {sorted(lost)}, ghosts {sorted(ghosts)}, wrong {found['wrong']}")
        state.present = held
    return {
        "store": settings.store,
        "kills": sum(moments.values()),
        "killed while": dict(moments.most_common()),
        "acknowledged changes": state.acknowledged,
        "faults": faults,
    }


def tiny_clip(seed: int) -> CLIP:
    """Random weights, without a tokenizer: quick enough that writing is most of the work."""
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**layers, "model_type": "clip_guidance_text_transformer", "vocab_size": 8}
    vision = {**layers, "model_type": "clip_guidance_vit", "image_size": 16, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = CLIP(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
        for parameter in clip.parameters():  # the usual initialisation leaves all embeddings alike
            torch.nn.init.normal_(parameter, std=0.3)
    return clip.eval()


def main(settings: Settings) -> None:
    torch.set_num_threads(1)  # a forked process has no other threads
    with tempfile.TemporaryDirectory() as scratch, address(settings.store, Path(scratch)) as place:
        found = run(settings, Path(scratch), place)
    if settings.json:
        print(json.dumps(found, indent=2))
    else:
        moments = ", ".join(f"{count} {action}" for action, count in found["killed while"].items())
        values = (found["store"], found["kills"], moments, found["acknowledged changes"], len(found["faults"]))
        print("| store | kills | killed while | acknowledged changes | kills with a fault |")
        print("| --- | --- | --- | --- | --- |")
        print("| " + " | ".join(map(str, values)) + " |", *found["faults"], sep="\n")
    if found["faults"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main(parse_settings(Settings))
