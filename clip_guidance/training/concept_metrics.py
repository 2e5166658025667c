"""What a CLIP in training knows beyond names: concepts by their keywords alone, and composites of two images.

Each question has as many texts as ``CANDIDATES``, one of them right. A composite's wrong texts keep one of its
concepts, half of them the first and half the second, so that reading one of the two is not enough.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clip_guidance.data.dataset import Row
from clip_guidance.metrics.statistics import with_intervals
from clip_guidance.training.composites import joined

if TYPE_CHECKING:
    from clip_guidance.clip import CLIP
    from clip_guidance.data.dataset import CaptionedImages

CANDIDATES = 100


def telling(row: Row) -> list[str]:
    """Return the keywords that share no word with the name.

    Example:
        >>> telling(Row("red apple", "noto", ("apple", "fruit", "red")))
        ['fruit']
    """
    words = set(row.name.lower().split())
    return [keyword for keyword in row.keywords if not words & set(keyword.lower().split())]


def by_keywords(row: Row, rng: random.Random) -> str:
    """Say up to three telling keywords in a frame that training never uses.

    Example:
        >>> by_keywords(Row("red apple", "noto", ("apple", "fruit", "red")), random.Random(0))
        'fruit in noto style'
    """
    known = telling(row)
    return f"{' and '.join(rng.sample(known, min(3, len(known))))} in {row.style} style"


def concept_metrics(clip: CLIP, data: CaptionedImages, seed: int = 0) -> dict[str, float]:
    """Measure how often the right one of a hundred texts is the most similar, with Wilson's intervals.

    Args:
        clip: Any CLIP.
        data: Images whose rows have styles and keywords.
        seed: Of the draws of keywords, partners and wrong texts, which do not depend on the CLIP.

    Returns:
        ``keywords_top1`` of images with at least two telling keywords, and ``composites_top1`` of each image of a name
        of one or two words with another of its style; none of a set of too few texts.
    """
    found: dict[str, float] = {}
    for name, ask in (("keywords_top1", _keyword_questions), ("composites_top1", _composite_questions)):
        images, texts = ask(data, random.Random(f"{seed}-{name}"))
        if texts:
            found |= with_intervals({name: _top1(clip, torch.stack(images), texts)}, len(texts))
    return found


def questions(data: CaptionedImages, seed: int = 0) -> dict[str, int]:
    """Return the number of questions that :func:`concept_metrics` asks of each kind."""
    kinds = (("keywords_top1", _keyword_questions), ("composites_top1", _composite_questions))
    counts = {name: len(ask(data, random.Random(f"{seed}-{name}"))[1]) for name, ask in kinds}
    return {name: count for name, count in counts.items() if count}


Questions = tuple[list[Tensor], list[list[str]]]  # images (3, H, W) in [0, 1]; the texts of each, the right one first


def _keyword_questions(data: CaptionedImages, rng: random.Random) -> Questions:
    asked = [index for index, row in enumerate(data.rows) if len(telling(row)) >= 2]
    texts = [by_keywords(data.rows[index], rng) for index in asked]
    of_name: dict[str, set[str]] = defaultdict(set)
    for text, index in zip(texts, asked, strict=True):
        of_name[data.rows[index].name].add(text)
    known, images, candidates = sorted(set(texts)), [], []
    for text, index in zip(texts, asked, strict=True):
        wrong = _others(known, of_name[data.rows[index].name], rng)
        if len(wrong) == CANDIDATES - 1:
            images.append(data.images[index].float() / 255)
            candidates.append([text, *wrong])
    return images, candidates


def _composite_questions(data: CaptionedImages, rng: random.Random) -> Questions:
    by_style: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(data.rows):
        if row.style and len(row.name.split()) <= 2:
            by_style[row.style].append(index)
    names = sorted({data.rows[index].name for indices in by_style.values() for index in indices})
    images, candidates = [], []
    for style, indices in by_style.items():
        for index in indices:
            partner = rng.choice(indices)
            first, second = data.rows[index].name, data.rows[partner].name
            wrong = _others(names, {first, second}, rng)
            if first == second or len(wrong) < CANDIDATES - 1:
                continue
            half = len(wrong) // 2
            pairs = [(first, second), *((first, name) for name in wrong[:half])]
            pairs += [(name, second) for name in wrong[half:]]
            candidates.append([f"a {style} picture of a {a} and a {b}" for a, b in pairs])
            left, right = (data.images[i].float() / 255 for i in (index, partner))
            images.append(joined(left, right, stacked=rng.random() < 0.5))
    return images, candidates


def _others(known: Sequence[str], right: Collection[str], rng: random.Random) -> list[str]:
    """Draw as many wrong texts as a question has; fewer where there are not as many."""
    drawn = rng.sample(known, min(len(known), CANDIDATES - 1 + len(right)))
    return [text for text in drawn if text not in right][: CANDIDATES - 1]


def _top1(clip: CLIP, images: Tensor, candidates: Sequence[Sequence[str]]) -> float:
    """Return the share of images to which the first of their texts is more similar than every other one."""
    texts = list(dict.fromkeys(text for own in candidates for text in own))
    number = {text: place for place, text in enumerate(texts)}
    cosines = clip.encode_image(images, batch_size=256) @ clip.encode_text(texts).T
    own = torch.tensor([[number[text] for text in row] for row in candidates], device=cosines.device)
    chosen = cosines.gather(1, own)
    return (chosen[:, :1] > chosen[:, 1:]).all(1).float().mean().item()
