"""What is drawn, and which texts the judge chooses among.

Three sets for the report, one to tune on. The images they are made from were held out of training.

- ``held-out``: (concept, style) pairs of which the model saw the concept in other styles only.
- ``pairs``: two concepts in one image. None was ever drawn with another; half of the judge's wrong texts keep the
  first concept and half the second, so that one of the two is not enough.
- ``keywords``: a held-out concept by its keywords alone, in words that no caption of training uses; judged by its name.
- ``tuning``: held-out pairs that the other sets do not use.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from clip_guidance.data.dataset import Row
from clip_guidance.training.concept_metrics import by_keywords, telling

REPORT_SETS = ("held-out", "pairs", "keywords")
SETS = (*REPORT_SETS, "tuning")
REPORTED = 500  # rows of the table, in a drawn order, that the report may use; the others are for tuning


@dataclass(frozen=True)
class Item:
    """One image to draw.

    Attributes:
        prompt: what the pipeline and the guide are given.
        target: what the judge should choose.
        others: the texts it may choose instead.
        row: the real image that is meant, where there is one: its number in the table.
    """

    prompt: str
    target: str
    others: tuple[str, ...]
    row: int | None = None


def prompt_set(name: str, rows: Sequence[Row], count: int, candidates: int, seed: int) -> list[Item]:
    """``count`` items of a set, fewer if the table has no more.

    Args:
        name: one of :data:`SETS`.
        rows: of the table of held-out images.
        count: number of items; a smaller set is the beginning of a larger one.
        candidates: texts that the judge chooses among, the right one included.
        seed: of every draw.

    Raises:
        ValueError: there is no such set, or it has too few texts for so many candidates.
    """
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    report, tuning = order[:REPORTED], order[REPORTED:]
    rng = random.Random(f"{seed}-{name}")
    if name == "held-out":
        items = [(rows[i].prompt, rows[i].prompt, i) for i in report]
    elif name == "tuning":
        items = [(rows[i].prompt, rows[i].prompt, i) for i in tuning]
    elif name == "keywords":
        items = [(by_keywords(rows[i], rng), rows[i].prompt, i) for i in report if len(telling(rows[i])) >= 2]
    elif name == "pairs":
        return pairs([rows[i] for i in report], candidates, rng)[:count]
    else:
        raise ValueError(f"unknown prompt set {name!r}; expected one of {', '.join(SETS)}")
    texts = sorted({target for _, target, _ in items})
    if len(texts) < candidates:
        raise ValueError(f"{name}: expected at least {candidates} different prompts to choose among, got {len(texts)}")
    return [
        Item(prompt, target, tuple(rng.sample([t for t in texts if t != target], candidates - 1)), row)
        for prompt, target, row in items[:count]
    ]


def pairs(rows: Sequence[Row], candidates: int, rng: random.Random) -> list[Item]:
    """Pair each row's concept with that of another row of its style; short names only."""
    short = [row for row in rows if len(row.name.split()) <= 2]
    items = []
    for row in short:
        others = sorted({other.name for other in short if other.style == row.style} - {row.name})
        if len(others) < 2:
            continue
        partner, names = rng.choice(others), sorted({other.name for other in short} - {row.name})

        def both(first: str, second: str, style: str = row.style) -> str:
            return f"a {style} picture of a {first} and a {second}"

        wrong = [name for name in names if name != partner]
        half = (candidates - 1) // 2
        if len(wrong) < candidates - 1:
            raise ValueError(f"pairs: expected at least {candidates} different names, got {len(wrong) + 1}")
        drawn = rng.sample(wrong, candidates - 1)
        texts = [both(row.name, name) for name in drawn[:half]] + [both(name, partner) for name in drawn[half:]]
        items.append(Item(both(row.name, partner), both(row.name, partner), tuple(texts)))
    return items
