"""Files of scores, as ``clip-guidance score --output`` writes them: a row a picture, with the definition beside it.

Two such files can be compared where they were scored by one definition and one judge, which their columns tell.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeAlias

SUFFIXES = (".jsonl", ".csv", ".parquet")
# what makes two scores incomparable; the model's name does not, since one model has a name on every machine
SETTINGS = (
    *("definition", "weight", "prefix", "clip", "positive", "negative", "logit_scale", "head"),
    *("fingerprint", "dtype", "preprocessing", "context_length"),
)
NEEDED = ("definition", "fingerprint")

Key: TypeAlias = str | tuple[str, str]


@dataclass(frozen=True)
class ScoreFile:
    """The scored pictures of a file.

    Attributes:
        path: the file.
        rows: those with a finite ``score``, a float.
        settings: the definition and judge of all of them, as text.
        skipped: the other rows, each with its number and what is wrong with it.
    """

    path: Path
    rows: list[dict[str, Any]]
    settings: dict[str, str]
    skipped: list[str]

    def scores(self, on: Literal["prompt", "image"] = "prompt") -> dict[Key, float]:
        """The mean score of each key.

        Args:
            on: "prompt", or "image": the picture's path below the folder that all pictures of the file share, and the
                prompt.

        Raises:
            ValueError: a row has no such column.
        """
        groups: dict[Key, list[float]] = {}
        for key, row in zip(self._keys(on), self.rows, strict=True):
            groups.setdefault(key, []).append(row["score"])
        return {key: fmean(scores) for key, scores in groups.items()}

    def _keys(self, on: str) -> list[Key]:
        for column in ("prompt", "image")[: 1 if on == "prompt" else 2]:
            if lacking := [row for row in self.rows if not row.get(column)]:
                raise ValueError(f"{self.path}: {len(lacking)} of {len(self.rows)} rows have no {column}")
        prompts = [str(row["prompt"]) for row in self.rows]
        if on == "prompt":
            return [*prompts]
        images = [os.path.abspath(str(row["image"])) for row in self.rows]
        shared = os.path.commonpath([os.path.dirname(image) for image in images]) if images else ""
        return [(os.path.relpath(image, shared), prompt) for image, prompt in zip(images, prompts, strict=True)]


def read_scores(path: str | Path) -> ScoreFile:
    """Reads a file of scores; a row that cannot be used is skipped and named.

    Args:
        path: .jsonl, .csv or .parquet.

    Raises:
        ValueError: another kind of file, no scores in it, or scores of several definitions or judges.
        OSError: it cannot be read.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a file of scores ({', '.join(SUFFIXES)})")
    rows, skipped = [], []
    for number, row in enumerate(_rows(path), start=1):
        score = _finite(row.get("score")) if isinstance(row, dict) else None
        if score is None:
            skipped.append(
                f"row {number}: {'has no finite score' if isinstance(row, dict) else 'is no row of a table'}"
            )
        else:
            rows.append({**row, "score": score})
    if not rows:
        raise ValueError(f"{path}: expected rows with a column score, found none in {len(skipped)} rows")
    return ScoreFile(path, rows, _settings(path, rows), skipped)


def refuse_unlike(a: ScoreFile, b: ScoreFile) -> None:
    """Refuses to compare what was not scored alike.

    Raises:
        ValueError: names each setting in which the two differ.
    """
    names = [name for name in SETTINGS if a.settings.get(name, "") != b.settings.get(name, "")]
    if names:
        unlike = "; ".join(f"{n} {a.settings.get(n, '')!r} and {b.settings.get(n, '')!r}" for n in names)
        raise ValueError(f"{a.path} and {b.path} were not scored alike: {unlike}")


def _settings(path: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    """The settings that all rows share, as text: a number is one whether it comes from CSV or JSON."""
    found = {}
    for name in SETTINGS:
        values = {"" if row.get(name) is None else str(row[name]) for row in rows}
        if len(values) > 1:
            raise ValueError(f"{path}: its rows differ in {name}: {', '.join(map(repr, sorted(values)))}")
        found[name] = values.pop()
        if name in NEEDED and not found[name]:
            raise ValueError(f"{path}: has no {name}, so that it is not known what it may be compared with")
    return {name: value for name, value in found.items() if value}


def _finite(value: Any) -> float | None:
    try:
        score = float(value)
    except (TypeError, ValueError):
        return None
    return score if math.isfinite(score) else None


def _rows(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        if path.suffix == ".csv":
            try:
                yield from csv.DictReader(file)
            except csv.Error as error:
                raise ValueError(f"{path}: {error}") from error
            return
        for line in file:
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError:  # the last line of a run that was killed
                    yield None


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError(f"{path}: parquet needs pyarrow: pip install 'clip-guidance[data]'") from None
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as parquet: {error}") from error
