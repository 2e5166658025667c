"""What a CLIP is worth while it is trained: names of held-out images, zero-shot classes, retrieval of captions.

Each figure is a dict of shares in [0, 1] for the log. Zero-shot accuracies and recalls of retrieval come with Wilson's
score interval at 95 % (Wilson 1927, Journal of the American Statistical Association 22:209–212), under the name of the
share with ``_low`` and ``_high`` behind it:

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n),   z = 1.96

It says how far another sample of n images might lie, not another training run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from clip_guidance.metrics.classification import classification_metrics
from clip_guidance.metrics.retrieval import hit_rate, recall_at_k, unique
from clip_guidance.metrics.statistics import with_intervals
from clip_guidance.zero_shot.classifier import ZeroShotClassifier
from clip_guidance.zero_shot.templates import DEFAULT_TEMPLATES, Template

if TYPE_CHECKING:
    from clip_guidance.clip import CLIP
    from clip_guidance.data.dataset import CaptionedImages
    from clip_guidance.training.objective import ContrastiveObjective

KS = (1, 5, 10)
BLOCK = 1024  # queries whose similarities to all candidates are held at once


@contextlib.contextmanager
def evaluating(objective: ContrastiveObjective) -> Iterator[CLIP]:
    """The CLIP in training, ready to encode, whole where it is sharded; as it was when the block ends."""
    training, sharded = objective.training, isinstance(objective, FSDPModule)
    objective.eval()
    if isinstance(objective, FSDPModule):
        objective.unshard()  # what belongs to no layer is needed outside of forward
    try:
        yield objective.clip
    finally:
        if sharded:
            objective.reshard()  # type: ignore[operator]
        objective.train(training)


@torch.no_grad()
def name_recall(clip: CLIP, data: CaptionedImages) -> dict[str, float]:
    """``R@1`` and ``R@5`` of the images among the distinct names they bear: an image asks, its name is right."""
    names, targets = unique([row.name for row in data.rows])
    image_embeds = clip.encode_image(data.images, batch_size=256)
    text_embeds = clip.encode_text([f"a picture of a {name}" for name in names])
    return recall_at_k(image_embeds @ text_embeds.T, targets.to(image_embeds.device))


@torch.no_grad()
def zero_shot_figures(
    clip: CLIP, data: CaptionedImages, templates: Sequence[Template] = DEFAULT_TEMPLATES
) -> dict[str, float]:
    """Zero-shot classification of images whose name is their class, among all the classes there are.

    Returns:
        ``zero_shot_top1`` and, of five classes or more, ``zero_shot_top5``, each with its interval; and
        ``zero_shot_mean_per_class_recall``, which is no share of independent cases and has none.

    Raises:
        ValueError: all images are of one class.
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
def retrieval_figures(clip: CLIP, data: CaptionedImages) -> dict[str, float]:
    """Retrieval among captioned images, both ways; where several have one caption, each of them is right.

    Captions of one image are not independent of each other, so both intervals count images.

    Returns:
        ``retrieval_text_R@k`` (an image asks for its captions) and ``retrieval_image_R@k`` (a caption asks for its
        image) for k of 1, 5 and 10, each with its interval.
    """
    captions = [row.captions or (row.prompt,) for row in data.rows]
    texts, numbers = unique([text for own in captions for text in own])
    images = torch.arange(len(data)).repeat_interleave(torch.tensor([len(own) for own in captions]))
    image_embeds = clip.encode_image(data.images, batch_size=256).cpu()
    text_embeds = clip.encode_text(texts).cpu()
    text = _recall(image_embeds, text_embeds, images, numbers)
    image = _recall(text_embeds, image_embeds, numbers, images)
    shares = {f"retrieval_text_{k}": share for k, share in text.items()}
    return with_intervals(shares | {f"retrieval_image_{k}": share for k, share in image.items()}, len(data))


def _recall(queries: Tensor, candidates: Tensor, query: Tensor, candidate: Tensor) -> dict[str, float]:
    """R@k where ``candidate[i]`` is right for ``query[i]``; a block of queries at a time."""
    hits = {f"R@{k}": 0.0 for k in KS}
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK]
        positives = torch.zeros(len(block), len(candidates), dtype=torch.bool)
        here = (query >= start) & (query < start + len(block))
        positives[query[here] - start, candidate[here]] = True
        for name, share in hit_rate(block @ candidates.T, positives, KS).items():
            hits[name] += share * len(block)
    return {name: total / len(queries) for name, total in hits.items()}
