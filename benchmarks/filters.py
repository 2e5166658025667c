"""Time what filters of metadata cost a search: narrow ones, wide ones and those of several keys.

    python benchmarks/filters.py --count 200000 --folder /tmp/filters

The images are searched for one query, first without a filter, then with one. Printed are, in milliseconds of CPU time,
the first search with a filter (which makes the indexes on its keys), the median of ``repeats`` searches with others on
the same keys, each a new one, what these cost beyond the search without a filter, and the median of as many of which
each follows a change of the index, so that nothing is remembered. Values are random, so that the images that pass lie
scattered; vectors are random too. An index that the folder holds is used as it stands.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clip_guidance.index.entries import Batch, Seen
from clip_guidance.index.store import Store
from clip_guidance.index.where import ALL, Condition, compile_where
from clip_guidance.training.settings import parse_settings

ADDED = 10_000  # vectors a transaction
ALBUMS = ("cats", "dogs", "birds", "fish", None)
# The braces hold the number of the repetition, or so many stars: what is asked for of a key is asked for once, since it
# would be remembered.
FILTERS = {
    "narrow, 1 %": "score < 0.010{:02}",
    "half, a number": "score < 0.5{:02}",
    "half, a truth value": "flag = true and flag != {:02}",
    "two of five texts": "album in (cats, dogs, {:02})",
    "all but few, a number": "score > 0.00{:02}",
    "all but those without it": "album != x{:02}",
    "those without it": "album in (null, {:02})",
    "half, by wildcards": 'word ~ "*5{1}" and word != {0:02}',
    "half, by path": 'path ~ "*5{1}" and path != {0:02}',
    "narrow, two keys": "score < 0.010{0:02} and flag = true and flag != {0:02}",
    "a quarter, two halves": "score < 0.5{0:02} and flag = true and flag != {0:02}",
    "most, two keys": "score > 0.1{0:02} and album != birds and album != x{0:02}",
    "half, by wildcards and a number": 'word ~ "*5{1}" and score < 0.9{0:02}',
    "three keys": "album in (cats, dogs, {0:02}) and year >= 2005.{0:02} and score < 0.9{0:02}",
}


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    count: int = 200_000  # images
    dim: int = 512  # of the vectors
    repeats: int = 9  # timed searches with each kind of filter
    seed: int = 0  # of vectors and metadata
    folder: str = ""  # of the index


def make(settings: Settings, folder: Path) -> None:
    about = {"fingerprint": "random", "model": "none", "dim": settings.dim, "dtype": "float32"}
    store, rng = Store(folder, about), np.random.default_rng(settings.seed)
    for start in range(0, settings.count, ADDED):
        numbers = range(start, min(start + ADDED, settings.count))
        vectors = rng.standard_normal((len(numbers), settings.dim), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        store.apply(Batch([seen(n, rng) for n in numbers], vectors))
    store.close()


def seen(number: int, rng: np.random.Generator) -> Seen:
    album = ALBUMS[rng.integers(len(ALBUMS))]
    metadata: dict[str, Any] = {"score": round(float(rng.random()), 9), "flag": bool(rng.integers(2))}
    metadata |= {"year": 2000 + int(rng.integers(25)), "word": f"{rng.integers(10**6):06}"}
    metadata |= {"prompt": f"a photo of a thing, number {number}, in the evening light"}
    metadata |= {} if album is None else {"album": album}
    return Seen(f"/photos/folder/{number:07}.png", f"{number:064x}", 1, 1, json.dumps(metadata))


def milliseconds(task: Callable[[], Any]) -> float:
    start = time.process_time()
    task()
    return 1000 * (time.process_time() - start)


def after_changes(store: Store, query: np.ndarray, conditions: list[Condition]) -> float:
    """Return the median of searches of which each follows a change of nothing, which counts as any other."""
    times = []
    for condition in conditions:
        store.patch(compile_where({"path": ""}), "{}")
        times.append(milliseconds(lambda c=condition: store.search(query, 10, c)))
    return statistics.median(times)


def main(settings: Settings) -> None:
    folder = Path(settings.folder)
    if not settings.folder:
        raise SystemExit("--folder: expected the folder of an index, which is made where there is none")
    if not folder.exists():
        make(settings, folder)
    store = Store(folder, None)
    query = np.random.default_rng(settings.seed + 1).standard_normal((1, settings.dim), np.float32)
    query /= np.linalg.norm(query)
    store.search(query, 10)  # vectors are compared with their checksums once
    plain = statistics.median(milliseconds(lambda: store.search(query, 10)) for _ in range(settings.repeats))
    print(f"{store.count():,} images x {settings.dim}, without a filter {plain:.1f} ms", end=", ")
    print(f"after a change {after_changes(store, query, [ALL] * settings.repeats):.1f} ms")
    print("| filter | pass, % | first, ms | later ones, ms | beyond no filter, ms | after a change, ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, where in FILTERS.items():
        conditions = [compile_where(where.format(n, "*" * n)) for n in range(1, settings.repeats + 2)]
        first, *later = (milliseconds(lambda c=condition: store.search(query, 10, c)) for condition in conditions)
        share, median = 100 * store.count(conditions[-1]) / store.count(ALL), statistics.median(later)
        more, changed = max(0.0, median - plain), after_changes(store, query, conditions[1:])
        print(f"| {name} | {share:.1f} | {first:.0f} | {median:.1f} | {more:.1f} | {changed:.1f} |", flush=True)
    store.close()


if __name__ == "__main__":
    main(parse_settings(Settings))
