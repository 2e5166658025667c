"""Scores that ``clip-guidance score --output`` wrote, read for a comparison of two files.

A file may hold several scores per image, one per definition and judge. Two scores can be compared where the whole
record beside them agrees, except for the model's name and revision: the fingerprint tells one model from another under
any name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal, TypeAlias

from clip_guidance.metrics.job.output import read_scores as read_rows
from clip_guidance.metrics.job.store import ScoreRow
from clip_guidance.metrics.job.tables import SUFFIXES

Key: TypeAlias = str | tuple[str, str]


@dataclass
class ScoreSet:
    """Hold the scores of a file by one definition and judge.

    Attributes:
        path: Path of the file.
        record: Definition, model and preprocessing, as text: a number is the same whether read from CSV or JSON.
        rows: Rows with finite scores.
        skipped: Images with other scores, and what is wrong with them.
    """

    path: Path
    record: dict[str, str]
    rows: list[ScoreRow] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, str]:
        """Return what has to agree in a comparison."""
        return {name: value for name, value in self.record.items() if name not in ("model", "revision")}

    def __str__(self) -> str:
        return f"{self.record['definition']} by {self.record.get('model', 'a model without a name')}"

    def scores(self, on: Literal["prompt", "image"] = "prompt") -> dict[Key, float]:
        """Average the scores of each key.

        Args:
            on: "prompt", or "image": the image's path below the folder that all images of the file share, and the
                prompt.

        Raises:
            ValueError: A row has no prompt and ``on`` is "prompt".
        """
        groups: dict[Key, list[float]] = {}
        for key, row in zip(self._keys(on), self.rows, strict=True):
            groups.setdefault(key, []).append(row.score)
        return {key: fmean(scores) for key, scores in groups.items()}

    def _keys(self, on: str) -> Sequence[Key]:
        if on == "prompt":
            if lacking := sum(not row.prompt for row in self.rows):
                raise ValueError(f"{self.path}: {lacking} of {len(self.rows)} rows have no prompt; pair on image")
            return [row.prompt for row in self.rows]
        images = [os.path.abspath(row.image) for row in self.rows]
        shared = os.path.commonpath([os.path.dirname(image) for image in images]) if images else ""
        return [(os.path.relpath(image, shared), row.prompt) for image, row in zip(images, self.rows, strict=True)]


def read_scores(path: str | Path) -> list[ScoreSet]:
    """Read a file of scores; a last line that was cut short is left out.

    Args:
        path: Path of a .jsonl, .csv or .parquet file.

    Returns:
        One set of scores per definition and judge, in the order in which they appear.

    Raises:
        ValueError: The file is of another kind, holds no scores, a damaged row, or scores of an unknown judge.
        OSError: The file cannot be read.
    """
    path, sets = Path(path), dict[str, ScoreSet]()
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a file of scores ({', '.join(SUFFIXES)})")
    for row, record in read_rows(path):
        if row.record not in sets:
            if "fingerprint" not in record:
                raise ValueError(f"{path}: has no fingerprint of the judge: it is not known what it compares with")
            sets[row.record] = ScoreSet(path, {name: str(value) for name, value in record.items()})
        of_record = sets[row.record]
        if math.isfinite(row.score):
            of_record.rows.append(row)
        else:
            of_record.skipped.append(f"{row.image}: {of_record}: its score is {row.score}")
    if not any(found.rows for found in sets.values()):
        raise ValueError(f"{path}: holds no scores")
    return list(sets.values())


def find_comparable(
    a: Sequence[ScoreSet], b: Sequence[ScoreSet], definition: str | None = None, model: str | None = None
) -> tuple[ScoreSet, ScoreSet]:
    """Find the scores that two files have in common.

    Args:
        a: All scores of the first file.
        b: All scores of the second file.
        definition: Name of a definition: take no other scores.
        model: Name of a model in the first file: take no other scores.

    Raises:
        ValueError: No such score is in both files, or several are; the message says what differs.
    """
    there = f"{', '.join(map(str, a))} and {', '.join(map(str, b))}"
    a = [found for found in a if definition in (None, found.record["definition"])]
    a = [found for found in a if model in (None, found.record.get("model"))]
    b = [found for found in b if definition in (None, found.record["definition"])]
    if not a or not b:
        raise ValueError(f"no score {' by '.join(filter(None, (definition, model)))!r} in both files: {there}")
    pairs = [(one, other) for one in a for other in b if one.settings == other.settings]
    if len(pairs) == 1:
        return pairs[0]
    if pairs:
        raise ValueError(f"several scores are in both: {_choices([one for one, _ in pairs])}")
    raise ValueError(f"{a[0].path} and {b[0].path} were not scored alike: {_unlike(a, b)}")


def _choices(found: Sequence[ScoreSet]) -> str:
    """Describe what to choose from; scores of one definition and model by the settings that differ."""
    names = list(dict.fromkeys(map(str, found)))
    if len(names) == len(found):
        return f"{'; '.join(names)}; choose one by its definition and model"
    settings = dict.fromkeys(name for one in found for name in one.settings)
    differ = [name for name in settings if len({one.settings.get(name) for one in found}) > 1]
    described = (f"{one} ({', '.join(f'{name} {one.settings.get(name)!r}' for name in differ)})" for one in found)
    return f"{'; '.join(described)}; definition and model do not tell them apart: keep each in a file of its own"


def _unlike(a: Sequence[ScoreSet], b: Sequence[ScoreSet]) -> str:
    """Describe what differs: by setting where each file has one score, else which scores there are."""
    if len(a) > 1 or len(b) > 1:
        return f"{', '.join(map(str, a))} and {', '.join(map(str, b))}"
    one, other = a[0].settings, b[0].settings
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return "; ".join(f"{name} {one.get(name, '')!r} and {other.get(name, '')!r}" for name in names)
