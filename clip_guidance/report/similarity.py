"""Reports of images that are compared: the matrix, a ranking, the hits of a search, near-duplicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from clip_guidance.images.load import ImageSource, as_list, image_name
from clip_guidance.index.results import Hit, Hits
from clip_guidance.report.html import parts
from clip_guidance.report.html.page import Page
from clip_guidance.report.html.parts import Card
from clip_guidance.report.html.thumbnails import Thumbnail, thumbnail
from clip_guidance.report.notebook import result_parts

ROUNDED = "Cosines are rounded to 0.001."


def similarity(
    matrix: Any,
    images_a: Any,
    images_b: Any = None,
    *,
    facts: Mapping[str, Any] | None = None,
    failed: Sequence[Mapping[str, str]] = (),
) -> Page:
    """Make a page with a heat map of cosines, and the images beside it.

    Args:
        matrix: Cosines (n, m), as ``image_similarity`` returns them.
        images_a: The n images of the rows, as for ``CLIP.encode_image``.
        images_b: The m images of the columns; by default those of the rows.
        facts: Names and values shown at the top.
        failed: Inputs that could not be read: ``path`` and ``reason``.

    Raises:
        ValueError: The numbers of images do not fit the matrix.

    Example:
        >>> from clip_guidance import report
        >>> from PIL import Image
        >>> red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
        >>> page = report.similarity([[1.0, 0.25], [0.25, 1.0]], [red, blue])
        >>> page.title, page.to_html().count("0.250")
        ('How alike images are', 2)
    """
    values = matrix.tolist() if hasattr(matrix, "tolist") else [list(row) for row in matrix]
    rows = as_list(images_a) if values else []
    columns = rows if images_b is None else as_list(images_b)
    if len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        shape = (len(values), len(values[0]) if values else 0)
        raise ValueError(f"expected a matrix ({len(rows)}, {len(columns)}) for these images, got {shape}")
    heads = _heads(rows)
    sides = heads, heads if images_b is None else _heads(columns)
    cells = [row[: parts.MAX_SIDE] for row in values[: parts.MAX_SIDE]]
    body = parts.heat_map(cells, *sides)
    counts = [parts.shown(len(side), total) for side, total in zip(sides, (len(rows), len(columns)), strict=True)]
    note = counts[0] if images_b is None else f"{counts[0]} in rows, {counts[1]} in columns"
    shades = "The bluer, the more alike, from the lowest to the highest cosine here."
    heat = parts.section("Similarity", body, f"{note}. {shades} {ROUNDED}")
    return Page("How alike images are", (parts.facts(facts or {}), heat, *parts.failures(failed)))


def ranking(
    images: Sequence[ImageSource],
    cosines: Sequence[float],
    *,
    to: ImageSource | None = None,
    facts: Mapping[str, Any] | None = None,
    failed: Sequence[Mapping[str, str]] = (),
) -> Page:
    """Make a page of images by their similarity to one image, best first, as they are given.

    Args:
        images: The images.
        cosines: Cosine of each image.
        to: The image that they are compared with.
        facts: Names and values shown at the top.
        failed: Inputs that could not be read: ``path`` and ``reason``.

    Raises:
        ValueError: There are not as many cosines as images.

    Example:
        >>> from clip_guidance import report
        >>> from PIL import Image
        >>> red, pink, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "salmon", "blue"))
        >>> page = report.ranking([pink, blue], [0.875, 0.25], to=red)
        >>> page.title, page.to_html().count("<img")
        ('Images by likeness', 3)
    """
    cards = [Card(image, value=f"{cos:.3f}") for image, cos in zip(images, cosines, strict=True)]
    query = () if to is None else (parts.section("Compared with", parts.gallery([Card(to)])),)
    return Page("Images by likeness", (parts.facts(facts or {}), *query, _found(cards), *parts.failures(failed)))


def search(query: str, hits: Sequence[Hit], *, facts: Mapping[str, Any] | None = None) -> Page:
    """Make a page of what a search found, best first.

    Args:
        query: The query, in words.
        hits: Hits, as ``ImageIndex.search`` returns them.
        facts: Names and values shown at the top.

    Example:
        >>> from clip_guidance import report
        >>> from clip_guidance.index import Hit
        >>> page = report.search("a cat", [Hit("/photos/cat.png", 0.3125, {"year": 2020})])
        >>> page.title, "year: 2020" in page.to_html()
        ('Search: a cat', True)
    """
    return Page(f"Search: {query}", (parts.facts(facts or {}), _hits(hits)))


@result_parts.register
def hits_parts(hits: Hits) -> tuple[Markup, ...]:
    """Draw the images that a search found, with their cosines and metadata."""
    return (_hits(hits),)


def _hits(hits: Sequence[Hit]) -> Markup:
    lines = [tuple(f"{key}: {value}" for key, value in hit.metadata.items()) for hit in hits]
    cards = [Card(hit.path, value=f"{hit.score:.3f}", lines=more) for hit, more in zip(hits, lines, strict=True)]
    return _found(cards)


def duplicates(
    groups: Sequence[Sequence[ImageSource]],
    *,
    facts: Mapping[str, Any] | None = None,
    failed: Sequence[Mapping[str, str]] = (),
) -> Page:
    """Make a page of groups of near-duplicates, in the order given; whole groups as long as there is room.

    Args:
        groups: Groups of images.
        facts: Names and values shown at the top.
        failed: Inputs that could not be read: ``path`` and ``reason``.

    Example:
        >>> from clip_guidance import report
        >>> from PIL import Image
        >>> red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
        >>> page = report.duplicates([[red, red], [blue, blue, blue]])
        >>> page.title, page.to_html().count("<img")
        ('Near-duplicates', 5)
    """
    bodies, room = [], parts.MAX_IMAGES
    for number, group in enumerate(groups, 1):
        chosen = group[:room]
        if not chosen:
            break
        room -= len(chosen)
        cards = parts.gallery([Card(image) for image in chosen])
        bodies.append(parts.section(f"Group {number}", cards, parts.shown(len(chosen), len(group))))
    total = sum(map(len, groups))
    counts = {"groups": len(groups), "images in them": total, "shown": parts.shown(parts.MAX_IMAGES - room, total)}
    about = parts.facts({**(facts or {}), **counts})
    return Page("Near-duplicates", (about, *bodies, *parts.failures(failed)))


def _found(cards: Sequence[Card]) -> Markup:
    chosen = cards[: parts.MAX_IMAGES]
    note = f"{parts.shown(len(chosen), len(cards))}, best first. {ROUNDED}"
    return parts.section("Images", parts.gallery(chosen), note)


def _heads(images: Sequence[ImageSource]) -> list[Thumbnail]:
    chosen = images[: parts.MAX_SIDE]
    return [thumbnail(image, image_name(image, place), parts.HEADING) for place, image in enumerate(chosen)]
