"""The parts that reports and notebooks are made of, each a piece of HTML in which every text is escaped.

Numbers are rounded as they are shown: probabilities to 0.1 %, cosines and scores to 0.001. A part shows a bounded
number of things and says how many there are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from clip_guidance.images.load import ImageSource, image_name
from clip_guidance.report.html.page import render
from clip_guidance.report.html.thumbnails import Thumbnail, thumbnail

MAX_IMAGES = 200  # images shown on a page at most
MAX_SIDE = 40  # rows or columns of a heat map at most
MAX_LINES = 200  # lines of a list at most
HEIGHT = 110  # of the tallest bar of a histogram, in a box of 120
HEADING = 96  # pixels of an image that heads a row or column: sharp at 48


@dataclass(frozen=True)
class Card:
    """Describe an image and the texts beside it.

    Attributes:
        image: Image as for ``load_image``.
        name: Name of the image; by default its path.
        value: A number, formatted.
        lines: Further texts.
    """

    image: ImageSource
    name: str | None = None
    value: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Guess:
    """Describe what a classifier says about an image.

    Attributes:
        bars: Pairs of label and probability, best first.
        given: The label in words, or that there is none.
        image: Image as for ``load_image``; None where it is not at hand.
        name: Name of the image; by default its path.
        verdict: "right" or "wrong" where that is known, else empty.
    """

    bars: tuple[tuple[str, float], ...]
    given: str
    image: ImageSource | None = None
    name: str | None = None
    verdict: str = ""


def section(title: str, body: Markup, note: str = "") -> Markup:
    """Draw a part under a title."""
    return render("section", title, note[:1].upper() + note[1:], body)


def facts(values: Mapping[str, Any]) -> Markup:
    """Draw names and values; a value that is None or an empty text is left out."""
    rows = [(name, _words(value)) for name, value in values.items() if value not in (None, "")]
    return render("facts", rows) if rows else Markup("")


def bars(rows: Iterable[tuple[str, float]]) -> Markup:
    """Draw a bar for each label, as wide as its share in [0, 1]."""
    return render("bars", list(rows))


def classified(guesses: Sequence[Guess]) -> Markup:
    """Draw each image beside the bars of its likeliest labels."""
    images = [None if guess.image is None else thumbnail(guess.image, guess.name) for guess in guesses]
    titles = [
        image.name if image else guess.name or f"image {number}"
        for number, (guess, image) in enumerate(zip(guesses, images, strict=True))
    ]
    cards = [
        {**vars(guess), "thumbnail": image, "title": title, "name": name}
        for guess, image, title, name in zip(guesses, images, titles, short_names(titles), strict=True)
    ]
    return render("classified", cards)


def gallery(cards: Sequence[Card]) -> Markup:
    """Draw images in rows, each with the texts beside it."""
    images = [thumbnail(card.image, card.name or image_name(card.image, i)) for i, card in enumerate(cards)]
    names = short_names([image.name for image in images])
    shown = [
        {"thumbnail": image, "title": image.name, "name": name, "value": card.value, "lines": card.lines}
        for card, image, name in zip(cards, images, names, strict=True)
    ]
    return render("gallery", shown)


def heat_map(
    values: Sequence[Sequence[float]],
    rows: Sequence[Thumbnail | str],
    columns: Sequence[Thumbnail | str],
    corner: str = "",
    form: str = ".3f",
) -> Markup:
    """Draw a table of numbers on a blue ground: the higher the number, the bluer.

    Args:
        values: Numbers (n, m).
        rows: Images or texts, n of them.
        columns: Images or texts, m of them.
        corner: What rows and columns are.
        form: Format of the numbers, as for ``format``.
    """
    shades = iter(unit(value for row in values for value in row))
    cells = [[{"shade": f"{next(shades):.2f}", "text": format(value, form)} for value in row] for row in values]
    return render("heat_map", corner, _headings(rows), _headings(columns, named=False), cells)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    """Draw a plain table: texts to the left, numbers to the right."""
    return render("table", columns, list(rows))


def histogram(values: Sequence[float], label: str) -> Markup:
    """Draw how often each range of the finite values occurs, with a dashed line at the mean.

    There are ⌈log₂ n⌉ + 1 ranges of equal width (Sturges 1926).
    """
    finite = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    if not len(finite):
        return Markup("")
    counts, edges = np.histogram(finite, _sturges(finite))
    bins = [
        {"height": round(HEIGHT * share, 1), "title": f"{count}: {low:.3f} to {high:.3f}"}
        for count, share, low, high in zip(counts, counts / counts.max(), edges[:-1], edges[1:], strict=True)
    ]
    mean, low, high = finite.mean(), edges[0], edges[-1]
    where = (mean - low) / (high - low) if high > low else 0.5
    return render("histogram", bins, where, f"{low:.3f}", f"{high:.3f}", f"{label}: mean {mean:.3f} of {len(finite)}")


def _sturges(values: np.ndarray) -> str | int:
    """Return what ``np.histogram`` takes for its bins.

    It is one bin where the values differ by rounding alone, which ``np.histogram`` refuses to divide.
    """
    return "sturges" if np.ptp(values) > 1e-12 * np.abs(values).max() else 1


def failures(failed: Sequence[Mapping[str, str]]) -> tuple[Markup, ...]:
    """List what could not be read, and why; nothing where all could."""
    if not failed:
        return ()
    rows = [(entry["path"], entry["reason"]) for entry in failed[:MAX_LINES]]
    return (section("Not read", table(["input", "reason"], rows), shown(len(rows), len(failed), "inputs")),)


def shown(count: int, total: int, what: str = "images", which: str = "the first") -> str:
    """Say how many of how many are on the page: "3 images", or "the first 200 of 4,000 images"."""
    if count < total:
        return f"{which} {count:,} of {total:,} {what}"
    return f"{total:,} {what.removesuffix('s') if total == 1 else what}"


def short_names(names: Sequence[str]) -> list[str]:
    """Shorten paths by the folder that all of them lie in."""
    if len(names) < 2:
        return [os.path.basename(name) or name for name in names]
    try:
        folder = os.path.commonpath([os.path.dirname(name) for name in names])
    except ValueError:  # some paths are absolute and some are not
        return list(names)
    return [os.path.relpath(name, folder) if folder else name for name in names]


def unit(values: Iterable[float]) -> list[float]:
    """Scale values to [0, 1] between the lowest and the highest; 0 for what is not finite."""
    values = list(values)
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return [(value - low) / (high - low) if high > low and math.isfinite(value) else 0.0 for value in values]


def _headings(heads: Sequence[Thumbnail | str], named: bool = True) -> list[dict[str, Any]]:
    """Make headings: texts as they are; images by number, in rows with their names."""
    images = [head for head in heads if isinstance(head, Thumbnail)]
    names = iter(short_names([image.name for image in images]))
    return [
        {"thumbnail": None, "title": head, "text": head}
        if isinstance(head, str)
        else {"thumbnail": head, "title": head.name, "text": f"{number}{f' · {next(names)}' if named else ''}"}
        for number, head in enumerate(heads, 1)
    ]


def _words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_words, value)) if isinstance(value, (list, tuple)) else str(value)
