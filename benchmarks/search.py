"""Time exact search of an image index beside faiss-cpu and Milvus Lite, on the same vectors.

    python benchmarks/search.py --count 200000 --dim 512

Each engine is filled by one process and opened by another, so that memory and the time to open are its own. Ours reads
a memory map that any process can open at once; faiss reads its file into memory. Measured are the time to add and to
open (until the first query is answered), one query, a batch of queries, one query under a filter that a share of the
images passes (ours: SQL over the metadata, a new filter each time; faiss: a selector of numbers that are known
already; Milvus: an expression over its primary key), and memory: what the opened engine holds by itself after all of
that (anonymous pages, which nothing else can have) and what is mapped from its files (which the system may take back).
Vectors are random, of unit length; the median of ``repeats`` is given.
"""

from __future__ import annotations

import importlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clip_guidance.training.settings import parse_settings

ADDED = 10_000  # vectors a transaction
SENT = 1_000  # vectors a request to Milvus


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    count: int = 200_000  # vectors in the index
    dim: int = 512  # of the vectors
    dtype: str = "float32"  # of our file; the other engines hold float32
    engines: list[str] = field(default_factory=lambda: ["ours", "faiss", "milvus"])  # to compare
    queries: int = 100  # of the batch of queries
    k: int = 10  # nearest vectors per query
    filter_share: float = 0.01  # of the images, which pass the filter
    repeats: int = 20  # timed runs, of which the median counts
    seed: int = 0  # of the vectors
    json: bool = False  # print JSON instead of a table
    step: str = ""  # "add" or "query" for the one engine given, as this program calls itself
    folder: str = ""  # of the files of that engine


class Ours:
    """An index in a folder; image n has the path n and the metadata {"n": n}."""

    needs = "clip_guidance.index.store"

    def __init__(self, settings: Settings, folder: Path):
        from clip_guidance.index.store import Store

        about = {"fingerprint": "random", "model": "none", "dim": settings.dim, "dtype": settings.dtype}
        self.name, self.store = f"ours ({settings.dtype})", Store(folder, about)
        self.passing, self.others = passing(settings), itertools.count()

    def add(self, embeds: np.ndarray) -> None:
        from clip_guidance.index.entries import Batch, Seen

        for start in range(0, len(embeds), ADDED):
            part = embeds[start : start + ADDED]
            numbers = range(start, start + len(part))
            self.store.apply(Batch([Seen(f"{n}", f"{n}", 0, 0, f'{{"n": {n}}}') for n in numbers], part))
        self.store.close()

    def search(self, queries: np.ndarray, k: int, filtered: bool = False) -> list[list[int]]:
        from clip_guidance.index.where import ALL, compile_where

        where = f"n < {self.passing} and n >= -{next(self.others)}"  # a new one each time: none is remembered
        hits = self.store.search(queries, k, compile_where(where) if filtered else ALL)
        return [[int(hit.path) for hit in row] for row in hits]


class Faiss:
    """``IndexFlatIP``, kept in a file in between."""

    needs = "faiss"

    def __init__(self, settings: Settings, folder: Path):
        import faiss

        self.path = folder / "faiss.index"
        made = self.path.exists()
        self.index = faiss.read_index(str(self.path)) if made else faiss.IndexFlatIP(settings.dim)
        self.name = f"faiss {faiss.__version__} Flat"
        self.chosen = faiss.SearchParameters(sel=faiss.IDSelectorRange(0, passing(settings)))  # type: ignore[call-arg]

    def add(self, embeds: np.ndarray) -> None:
        import faiss

        self.index.add(embeds)
        self.path.parent.mkdir(exist_ok=True)
        faiss.write_index(self.index, str(self.path))

    def search(self, queries: np.ndarray, k: int, filtered: bool = False) -> list[list[int]]:
        return self.index.search(queries, k, params=self.chosen if filtered else None)[1].tolist()


class Milvus:
    """Milvus Lite in a file, its exact index; the number of an image is its primary key."""

    needs = "pymilvus"

    def __init__(self, settings: Settings, folder: Path):
        from pymilvus import DataType, MilvusClient, __version__

        folder.mkdir(exist_ok=True)
        self.client = MilvusClient(str(folder / "milvus.db"), dedicated=True)
        self.name, self.passing = f"Milvus Lite (pymilvus {__version__}) FLAT", passing(settings)
        if not self.client.has_collection("images"):
            schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", DataType.INT64, is_primary=True)
            schema.add_field("embeds", DataType.FLOAT_VECTOR, dim=settings.dim)
            index = self.client.prepare_index_params()
            index.add_index("embeds", index_type="FLAT", metric_type="COSINE")
            self.client.create_collection("images", schema=schema, index_params=index, consistency_level="Strong")
        self.client.load_collection("images")

    def add(self, embeds: np.ndarray) -> None:
        for start in range(0, len(embeds), SENT):
            part = embeds[start : start + SENT]
            self.client.insert("images", [{"id": start + i, "embeds": vector} for i, vector in enumerate(part)])
        self.client.flush("images")
        self.client.close()

    def search(self, queries: np.ndarray, k: int, filtered: bool = False) -> list[list[int]]:
        where = f"id < {self.passing}" if filtered else ""
        rows = self.client.search("images", queries, filter=where, limit=k, anns_field="embeds")
        return [[hit["id"] for hit in row] for row in rows]


ENGINES: dict[str, Callable[[Settings, Path], Any]] = {"ours": Ours, "faiss": Faiss, "milvus": Milvus}


@dataclass(frozen=True)
class Row:
    """What one engine did: seconds, milliseconds, mebibytes, and the numbers that it found."""

    engine: str
    open_ms: float
    one_ms: float
    batch_ms: float
    filter_ms: float
    held_mib: float
    mapped_mib: float
    found: list[list[int]]
    filtered: list[list[int]]
    add_s: float = 0.0
    same: float = 1.0
    same_filtered: float = 1.0


def passing(settings: Settings) -> int:
    """How many of the images, the first ones, the filter lets through."""
    return max(1, round(settings.filter_share * settings.count))


def unit(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    vectors = rng.standard_normal((count, dim), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def milliseconds(task: Callable[[], Any], repeats: int) -> float:
    """Return the median of ``repeats`` runs, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        task()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def resident(kind: str) -> float:
    """Mebibytes of this process's pages of a kind: ``RssAnon`` or ``RssFile`` (proc(5))."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) / 1024


def add(settings: Settings) -> dict[str, float]:
    """Fill the engine; its process then ends."""
    embeds = unit(np.random.default_rng(settings.seed), settings.count, settings.dim)
    engine = ENGINES[settings.engines[0]](settings, Path(settings.folder))
    start = time.perf_counter()
    engine.add(embeds)
    return {"add_s": time.perf_counter() - start}


def query(settings: Settings) -> dict[str, Any]:
    """Open the engine that another process has filled, and query it."""
    kind = ENGINES[settings.engines[0]]
    queries = unit(np.random.default_rng(settings.seed + 1), settings.queries, settings.dim)
    importlib.import_module(kind.needs)  # type: ignore[attr-defined]
    held, mapped, start = resident("RssAnon"), resident("RssFile"), time.perf_counter()
    engine = kind(settings, Path(settings.folder))
    engine.search(queries[:1], settings.k)
    opened = 1000 * (time.perf_counter() - start)
    k, repeats = settings.k, settings.repeats
    row = Row(
        engine=engine.name,
        open_ms=opened,
        one_ms=milliseconds(lambda: engine.search(queries[:1], k), repeats),
        batch_ms=milliseconds(lambda: engine.search(queries, k), max(1, repeats // 10)),
        filter_ms=milliseconds(lambda: engine.search(queries[:1], k, filtered=True), repeats),
        held_mib=resident("RssAnon") - held,
        mapped_mib=resident("RssFile") - mapped,
        found=engine.search(queries, k),
        filtered=engine.search(queries, k, filtered=True),
    )
    return asdict(row)


def measure(settings: Settings, folder: Path) -> list[Row]:
    """Return a row per engine, with the share of the first engine's nearest that it found."""
    rows: list[Row] = []
    for engine in settings.engines:
        found: dict[str, Any] = {}
        for step in ("add", "query"):
            given = {"step": step, "engines": engine, "folder": str(folder / engine)}
            same = ("count", "dim", "dtype", "queries", "k", "filter_share", "repeats", "seed")
            options = given | {name: str(getattr(settings, name)) for name in same}
            words = [word for name, value in options.items() for word in (f"--{name}", value)]
            done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{engine}, {step}: {done.stderr}")
            found = json.loads(done.stdout.splitlines()[-1]) | found  # what the first step said stands
        best = rows[0] if rows else Row(**found)
        found["same"], found["same_filtered"] = (
            shared(found[kind], getattr(best, kind)) for kind in ("found", "filtered")
        )
        rows.append(Row(**found))
    return rows


def shared(one: list[list[int]], other: list[list[int]]) -> float:
    """Return the mean share of the nearest that two engines have in common."""
    return statistics.mean(len(set(a) & set(b)) / max(1, len(b)) for a, b in zip(one, other, strict=True))


def main(settings: Settings) -> None:
    if unknown := set(settings.engines) - set(ENGINES):
        raise SystemExit(f"--engines: expected some of {', '.join(ENGINES)}, got {sorted(unknown)}")
    if settings.step:
        print(json.dumps((add if settings.step == "add" else query)(settings)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(settings, Path(scratch))
    if settings.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    print(f"{settings.count} x {settings.dim}, top {settings.k}, filter passes {settings.filter_share:.1%}\n")
    names = ("add, s", "open, ms", "1 query, ms", f"{settings.queries} queries, ms", "1 query with a filter, ms")
    print("| engine | " + " | ".join((*names, "held, MiB", "mapped, MiB", "same, %")) + " |\n|" + " --- |" * 9)
    for row in rows:
        numbers = (row.add_s, row.open_ms, row.one_ms, row.batch_ms, row.filter_ms, row.held_mib, row.mapped_mib)
        print(f"| {row.engine} | " + " | ".join(f"{number:,.3g}" for number in numbers) + f" | {100 * row.same:.1f} |")


if __name__ == "__main__":
    main(parse_settings(Settings))
