"""Reports of scores: their spread, the best and the worst images; and the comparison of two runs."""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from clip_guidance.images.load import ImageSource
from clip_guidance.metrics.comparison import PairedComparison
from clip_guidance.report.html import parts
from clip_guidance.report.html.page import Page, percent
from clip_guidance.report.html.parts import Card
from clip_guidance.report.notebook import result_parts

EXTREMES = 30  # images shown of the best, and of the worst
ROUNDED = "Scores are rounded to 0.001."


@dataclass(frozen=True)
class Scores:
    """Hold what one definition says of images.

    Attributes:
        rows: Triples (image, text, score); read once, so this may be a generator of any length.
        title: Name of the definition.
        facts: More about the definition, such as ``ScoreDefinition.record``.

    Example:
        >>> from clip_guidance import report
        >>> from PIL import Image
        >>> rows = [(Image.new("RGB", (64, 64), "red"), "a red square", 27.5)]
        >>> report.Scores(rows, "CLIPScore", {"weight": 2.5}).title
        'CLIPScore'
    """

    rows: Iterable[tuple[ImageSource, str, float]]
    title: str = "Scores"
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Row:
    score: float
    image: ImageSource
    text: str


class _Highest:
    """Keep the rows of the highest rank met so far, the first of equal ones."""

    def __init__(self, size: int) -> None:
        self.size, self.place = size, 0
        self.heap: list[tuple[float, int, _Row]] = []  # the place breaks ties, since rows cannot be compared

    def add(self, rank: float, row: _Row) -> None:
        self.place -= 1
        if len(self.heap) < self.size:
            heapq.heappush(self.heap, (rank, self.place, row))
        else:
            heapq.heappushpop(self.heap, (rank, self.place, row))

    def rows(self) -> list[_Row]:
        return [row for _, _, row in sorted(self.heap, reverse=True)]


def scores(*definitions: Scores, failed: Sequence[Mapping[str, str]] = ()) -> Page:
    """Make a page of scores: for each definition a histogram, the best images and the worst.

    Eight bytes are held per score, and only those images and texts that are shown.

    Args:
        definitions: What each definition says of the images.
        failed: Inputs that could not be read: ``path`` and ``reason``.

    Example:
        >>> from clip_guidance import report
        >>> from PIL import Image
        >>> red = Image.new("RGB", (64, 64), "red")
        >>> page = report.scores(report.Scores([(red, "a red square", 27.5)], title="torchmetrics"))
        >>> "27.500" in page.to_html()
        True
    """
    bodies = [part for definition in definitions for part in _parts(definition)]
    return Page("Scores", (*bodies, *parts.failures(failed)))


def comparison(found: PairedComparison, *, facts: Mapping[str, Any] | None = None) -> Page:
    """Make a page of two runs compared pair by pair: the differences, and the pairs that differ most.

    Args:
        found: What ``compare_scores`` returned.
        facts: Names and values shown at the top.

    Example:
        >>> import clip_guidance as cg
        >>> from clip_guidance import report
        >>> found = cg.compare_scores({"cat": 20.0, "dog": 25.0}, {"cat": 22.0, "dog": 26.0})
        >>> page = report.comparison(found, facts={"judge": "emoji"})
        >>> "+1.5000 (+1.0000 to +2.0000)" in page.to_html()
        True
    """
    return Page("Two runs compared", (parts.facts(facts or {}), *comparison_parts(found)))


@result_parts.register
def comparison_parts(found: PairedComparison) -> tuple[Markup, ...]:
    """Draw figures with their intervals, a histogram of the differences, and the pairs that differ most."""
    d, w = found.difference, found.win_rate
    figures = {
        "pairs": len(found.keys),
        "difference b − a": f"{d.estimate:+.4f} ({d.low:+.4f} to {d.high:+.4f})",
        "b is higher": f"{percent(w.estimate)} ({percent(w.low)} to {percent(w.high)})",
        "only in a": len(found.only_a) or None,
        "only in b": len(found.only_b) or None,
    }
    names = [" | ".join(map(str, key)) if isinstance(key, tuple) else str(key) for key in found.keys]
    numbers = zip(found.a.tolist(), found.b.tolist(), found.differences.tolist(), strict=True)
    rows = sorted(((name, *three) for name, three in zip(names, numbers, strict=True)), key=lambda row: -row[3])
    chosen = rows if len(rows) <= 2 * EXTREMES else rows[:EXTREMES] + rows[-EXTREMES:]
    lines = [(name, f"{a:.3f}", f"{b:.3f}", f"{difference:+.3f}") for name, a, b, difference in chosen]
    which = f"The {EXTREMES} that gain and the {EXTREMES} that lose most:"
    note = f"{parts.shown(len(chosen), len(rows), 'pairs', which)}. {ROUNDED}"
    return (
        parts.section("Measured", parts.facts(figures), "In brackets bootstrap intervals; a tie is half a win."),
        parts.section("Differences", parts.histogram(found.differences.tolist(), "b − a")),
        parts.section("Pairs", parts.table(["pair", "a", "b", "difference"], lines), note),
    )


def _parts(definition: Scores) -> tuple[Markup, ...]:
    """Read the rows once: all numbers, and the extremes with what they belong to."""
    numbers, best, worst, left_out = array("d"), _Highest(2 * EXTREMES), _Highest(EXTREMES), 0
    for image, text, score in definition.rows:
        if not math.isfinite(score):
            left_out += 1
            continue
        numbers.append(score)
        row = _Row(score, image, text)
        best.add(score, row)
        worst.add(-score, row)
    about = {**definition.facts, "images": len(numbers), "scores that are not finite": left_out or None}
    spread = parts.histogram(numbers, "score")
    head = parts.section(definition.title, parts.facts(about))
    shown = _extremes(len(numbers), best.rows(), worst.rows())
    return (head, *([parts.section("Spread", spread)] if spread else []), *shown)


def _extremes(count: int, best: list[_Row], worst: list[_Row]) -> tuple[Markup, ...]:
    """Draw all images where they are few; else the best, and the worst with the worst first."""
    if count <= 2 * EXTREMES:
        return (parts.section("Images", _gallery(best), f"{parts.shown(count, count)}, best first. {ROUNDED}"),)
    notes = [f"{parts.shown(EXTREMES, count, which=which)}" for which in ("the best", "the worst")]
    return (
        parts.section("Best", _gallery(best[:EXTREMES]), f"{notes[0]}. {ROUNDED}"),
        parts.section("Worst", _gallery(worst), f"{notes[1]}, the worst first. {ROUNDED}"),
    )


def _gallery(rows: Sequence[_Row]) -> Markup:
    cards = [Card(row.image, value=f"{row.score:.3f}", lines=(row.text,) if row.text else ()) for row in rows]
    return parts.gallery(cards)
