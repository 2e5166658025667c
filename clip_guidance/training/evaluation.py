"""Metrics of a CLIP in training: recall of names, zero-shot classification, retrieval.

Each function returns a dict of shares in [0, 1] for the log. Zero-shot accuracies and recalls of retrieval come with
Wilson's score interval at 95 % (Wilson 1927, Journal of the American Statistical Association 22:209–212), under the
name of the share followed by ``_low`` and ``_high``:

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n),   z = 1.96

The interval is about another sample of n images, not about another training run.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.distributed.fsdp import FSDPModule

from clip_guidance.metrics.classification import classification_metrics
from clip_guidance.metrics.retrieval import recall_at_k, unique
from clip_guidance.metrics.statistics import with_intervals
from clip_guidance.training.concept_metrics import CANDIDATES, concept_metrics, questions
from clip_guidance.zero_shot.classifier import ZeroShotClassifier
from clip_guidance.zero_shot.templates import DEFAULT_TEMPLATES, NAME_TEMPLATE, Template

if TYPE_CHECKING:
    from clip_guidance.clip import CLIP
    from clip_guidance.data.dataset import CaptionedImages
    from clip_guidance.training.objective import ContrastiveObjective

KS = (1, 5, 10)


@contextlib.contextmanager
def evaluating(objective: ContrastiveObjective) -> Iterator[CLIP]:
    """Yield the CLIP in evaluation mode and unsharded, and restore both after the block."""
    training, sharded = objective.training, isinstance(objective, FSDPModule)
    objective.eval()
    if isinstance(objective, FSDPModule):
        objective.unshard()  # parameters of no layer are needed outside of forward
    try:
        yield objective.clip
    finally:
        if sharded:
            objective.reshard()  # type: ignore[operator]
        objective.train(training)


@torch.no_grad()
def name_recall(clip: CLIP, data: CaptionedImages) -> dict[str, float]:
    """Return ``R@1`` and ``R@5`` of the images among all distinct names or first captions of the data.

    A name is put into the sentence of ``NAME_TEMPLATE``; a caption is a sentence already, and asked as it is.
    """
    texts, targets = unique(_name_texts(data))
    image_embeds = clip.encode_image(data.images, batch_size=256)
    text_embeds = clip.encode_text(texts)
    return recall_at_k(image_embeds, text_embeds, targets.to(image_embeds.device))


@torch.no_grad()
def zero_shot_metrics(
    clip: CLIP, data: CaptionedImages, templates: Sequence[Template] = DEFAULT_TEMPLATES
) -> dict[str, float]:
    """Measure zero-shot classification among all classes of the data.

    The name of an image is its class.

    Returns:
        ``zero_shot_top1`` and, with five classes or more, ``zero_shot_top5``, each with its interval; and
        ``zero_shot_mean_per_class_recall`` without one, since it is no share of independent cases.

    Raises:
        ValueError: All images are of one class.
    """
    labels, targets = unique([row.name for row in data.rows])
    if len(labels) < 2:
        raise ValueError(f"zero-shot: expected images of at least two classes, all {len(data)} are {labels[0]!r}")
    classifier = ZeroShotClassifier(clip, labels, templates)
    logits = classifier.classify_embeds(clip.encode_image(data.images, batch_size=256)).logits.cpu()
    metrics = classification_metrics(logits, targets)
    shares = {"zero_shot_top1": metrics.top1} | ({} if metrics.top5 is None else {"zero_shot_top5": metrics.top5})
    return with_intervals(shares, len(data)) | {"zero_shot_mean_per_class_recall": metrics.mean_per_class_recall}


@torch.no_grad()
def retrieval_metrics(clip: CLIP, data: CaptionedImages) -> dict[str, float]:
    """Measure retrieval among captioned images in both directions.

    Where several images have the same caption, each of them is right. The captions of one image are not independent of
    each other, so both intervals count images.

    Returns:
        ``retrieval_text_R@k`` (an image is the query, its captions are right) and ``retrieval_image_R@k`` (a caption is
        the query, its image is right) for k of 1, 5 and 10, each with its interval.
    """
    captions = [row.captions or (row.prompt,) for row in data.rows]
    texts, numbers = unique([text for own in captions for text in own])
    images = torch.arange(len(data)).repeat_interleave(torch.tensor([len(own) for own in captions]))
    image_embeds = clip.encode_image(data.images, batch_size=256).cpu()
    text_embeds = clip.encode_text(texts).cpu()
    text = recall_at_k(image_embeds, text_embeds, torch.stack([images, numbers], 1), KS)
    image = recall_at_k(text_embeds, image_embeds, torch.stack([numbers, images], 1), KS)
    shares = {f"retrieval_text_{k}": share for k, share in text.items()}
    return with_intervals(shares | {f"retrieval_image_{k}": share for k, share in image.items()}, len(data))


def at_chance(measure: Callable[..., dict[str, float]], data: CaptionedImages) -> dict[str, tuple[int, float]]:
    """Return what a CLIP that knows nothing would reach, for each figure that a measurement can give.

    Args:
        measure: :func:`name_recall`, :func:`zero_shot_metrics`, :func:`retrieval_metrics` or
            :func:`~clip_guidance.training.concept_metrics.concept_metrics`.
        data: The images that it measures.

    Returns:
        For each figure the number of cases, which are images, or captions where those ask, and the expected share.
    """
    images = len(data)
    if measure is retrieval_metrics:
        captions = [dict.fromkeys(row.captions or (row.prompt,)) for row in data.rows]
        right = Counter(text for own in captions for text in own)
        asked = {
            "text": _recall_at_chance([len(own) for own in captions], len(right)),
            "image": _recall_at_chance(list(right.values()), images),
        }
        counts = {"text": images, "image": len(right)}
        return {f"retrieval_{ask}_R@{k}": (counts[ask], chance(k)) for ask, chance in asked.items() for k in KS}
    if measure is name_recall:
        chance = _recall_at_chance([1], len(set(_name_texts(data))))
        return {f"R@{k}": (images, chance(k)) for k in (1, 5)}
    if measure is concept_metrics:
        return {name: (count, 1 / CANDIDATES) for name, count in questions(data).items()}
    chance = _recall_at_chance([1], len({row.name for row in data.rows}))
    shares = {"zero_shot_top1": chance(1), "zero_shot_top5": chance(5), "zero_shot_mean_per_class_recall": chance(1)}
    return {name: (images, share) for name, share in shares.items()}


def _recall_at_chance(right: Sequence[int], candidates: int) -> Callable[[int], float]:
    """Return R@k of a random order as a function of k, where each query has this many right candidates."""

    def chance(k: int) -> float:
        drawn = min(k, candidates)
        missed = [math.comb(candidates - own, drawn) / math.comb(candidates, drawn) for own in right]
        return 1 - sum(missed) / len(missed)

    return chance


def _name_texts(data: CaptionedImages) -> list[str]:
    return [row.captions[0] if row.captions else NAME_TEMPLATE.format(row.name) for row in data.rows]
