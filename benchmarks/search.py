"""Exact search of an image index beside faiss-cpu's exact index, on the same vectors.

    python benchmarks/search.py --count 200000 --dim 512

Ours reads a memory map that any process can open at once; faiss holds its vectors in memory. Measured are one query, a
batch of queries, and one query under a filter that a share of the pictures passes (ours: SQL over the metadata, a new
filter each time; faiss: a selector of numbers that are known already). Vectors are random, of unit length; the median
of ``repeats`` is given.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clip_guidance.index.entries import Batch, Seen
from clip_guidance.index.store import Store
from clip_guidance.index.where import compile_where
from clip_guidance.trainer import parse_settings

ADDED = 10_000  # vectors a transaction


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    count: int = 200_000
    dim: int = 512
    dtype: str = "float32"  # of our file; faiss holds float32
    queries: int = 100  # of the batch
    k: int = 10
    share: float = 0.01  # of the pictures that pass the filter
    repeats: int = 20
    seed: int = 0
    json: bool = False  # print JSON instead of a table


def unit(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    vectors = rng.standard_normal((count, dim), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def milliseconds(task: Callable[[], Any], repeats: int) -> float:
    """The median of ``repeats`` runs, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        task()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def build(settings: Settings, folder: Path, embeds: np.ndarray) -> Store:
    """An index of our own; picture n has the path n and the metadata {"n": n}."""
    about = {"fingerprint": "random", "model": "none", "dim": settings.dim, "dtype": settings.dtype}
    store = Store(folder, about)
    for start in range(0, len(embeds), ADDED):
        part = embeds[start : start + ADDED]
        numbers = range(start, start + len(part))
        store.apply(Batch([Seen(f"{n}", f"{n}", 0, 0, f'{{"n": {n}}}') for n in numbers], part))
    return store


def paths(rows: list[list[Any]]) -> list[list[int]]:
    return [[int(hit.path) for hit in hits] for hits in rows]


def measure(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    """A row an engine: milliseconds and, against ours, how many of the nearest are the same."""
    rng = np.random.default_rng(settings.seed)
    embeds, queries = unit(rng, settings.count, settings.dim), unit(rng, settings.queries, settings.dim)
    passing = max(1, round(settings.share * settings.count))
    where = compile_where(f"n < {passing}")
    others = (compile_where(f"n < {passing} and n >= -{number}") for number in itertools.count())  # none is remembered

    start = time.perf_counter()
    store = build(settings, folder, embeds)
    seconds = time.perf_counter() - start
    k, repeats = settings.k, settings.repeats
    ours = {
        "engine": f"ours ({settings.dtype})",
        "build_s": seconds,
        "one_ms": milliseconds(lambda: store.search(queries[:1], k), repeats),
        "batch_ms": milliseconds(lambda: store.search(queries, k), max(1, repeats // 10)),
        "filter_ms": milliseconds(lambda: store.search(queries[:1], k, next(others)), repeats),
    }
    found, filtered = paths(store.search(queries, k)), paths(store.search(queries, k, where))
    store.close()
    rows = [{**ours, "same": 1.0, "same_filtered": 1.0}]
    try:
        import faiss
    except ImportError:
        return rows
    start = time.perf_counter()
    index = faiss.IndexFlatIP(settings.dim)
    index.add(embeds)
    seconds = time.perf_counter() - start
    chosen = faiss.SearchParameters(sel=faiss.IDSelectorRange(0, passing))
    theirs = {
        "engine": f"faiss {faiss.__version__} Flat",
        "build_s": seconds,
        "one_ms": milliseconds(lambda: index.search(queries[:1], k), repeats),
        "batch_ms": milliseconds(lambda: index.search(queries, k), max(1, repeats // 10)),
        "filter_ms": milliseconds(lambda: index.search(queries[:1], k, params=chosen), repeats),
        "same": shared(index.search(queries, k)[1], found),
        "same_filtered": shared(index.search(queries, k, params=chosen)[1], filtered),
    }
    return [*rows, theirs]


def shared(one: np.ndarray, other: list[list[int]]) -> float:
    """The mean share of the nearest that two engines have in common."""
    pairs = zip(one.tolist(), other, strict=True)
    return statistics.mean(len(set(a) & set(b)) / max(1, len(b)) for a, b in pairs)


def main(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(settings, Path(scratch, "index"))
    if settings.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{settings.count} x {settings.dim}, top {settings.k}, filter passes {settings.share:.1%}\n")
    print(f"| engine | build, s | 1 query, ms | {settings.queries} queries, ms | 1 query with a filter, ms | same |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        numbers = [f"{row[key]:.3g}" for key in ("build_s", "one_ms", "batch_ms", "filter_ms", "same")]
        print("| " + " | ".join([row["engine"], *numbers]) + " |")


if __name__ == "__main__":
    main(parse_settings(Settings))
