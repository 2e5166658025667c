"""Reports of zero-shot classification: each image beside its likeliest labels, and the labels that were confused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from markupsafe import Markup

from clip_guidance.images.load import ImageSource, as_list
from clip_guidance.metrics.classification import ClassificationMetrics, classification_metrics
from clip_guidance.report.html import parts
from clip_guidance.report.html.page import Page, percent
from clip_guidance.report.html.parts import Guess
from clip_guidance.report.notebook import result_parts
from clip_guidance.zero_shot.classifier import ZeroShotResult

LABELS = 30  # of a confusion matrix at most; beyond, the commonest confusions are listed
ROUNDED = "Probabilities are rounded to 0.1 %."


def classification(
    result: ZeroShotResult,
    images: Any = None,
    *,
    truth: Sequence[str | None] | None = None,
    k: int = 5,
    threshold: float = 0.0,
    facts: Mapping[str, Any] | None = None,
    failed: Sequence[Mapping[str, str]] = (),
) -> Page:
    """Make a page of classified images.

    Args:
        result: The result of n images.
        images: The n images, as for ``CLIP.encode_image``; without them only their bars are shown.
        truth: The right label of each image, None where it is not known. Where there are more images than are shown,
            the
            wrong ones come first, the surest of them before the others.
        k: Labels shown for each image.
        threshold: A label that is less likely is not given.
        facts: Names and values shown at the top.
        failed: Inputs that could not be read: ``path`` and ``reason``.

    Raises:
        ValueError: There are not n images or not n labels, or a label is unknown.

    Example:
        >>> import clip_guidance as cg
        >>> import torch
        >>> from clip_guidance import report
        >>> probs = torch.tensor([[0.9, 0.1]])
        >>> page = report.classification(cg.ZeroShotResult(("cat", "dog"), probs.log(), probs), truth=["cat"])
        >>> page.title, "90.0%" in page.to_html()
        ('Classified images', True)
    """
    sources: list[ImageSource] | None = None if images is None or not len(result) else as_list(images)
    for what, given in (("images", sources), ("right labels", truth)):
        if given is not None and len(given) != len(result):
            raise ValueError(f"expected {len(result)} {what}, one for each of the result's, got {len(given)}")
    measured = () if truth is None else _measured(result, truth)
    order = range(len(result)) if truth is None else _mistakes_first(result, truth)
    chosen = list(order)[: parts.MAX_IMAGES]
    note = parts.shown(len(chosen), len(result)) + (
        "" if truth is None else ", mistakes first, the surest before others"
    )
    guesses = _guesses(result, chosen, sources, truth, k, threshold)
    body = parts.section("Images", parts.classified(guesses), f"{note}. {ROUNDED}")
    about = parts.facts(facts or {})
    return Page("Classified images", (about, *measured, body, *parts.failures(failed)))


def confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> Markup:
    """Draw the images of label i (rows) that were given label j (columns); of many labels the commonest mistakes."""
    if len(labels) <= LABELS:
        return parts.heat_map(matrix, labels, labels, corner="right ↓ given →", form="d")
    mistakes = [
        (count, labels[i], labels[j]) for i, row in enumerate(matrix) for j, count in enumerate(row) if count and i != j
    ]
    lines = sorted(mistakes, key=lambda mistake: -mistake[0])[:LABELS]
    return parts.table(["right", "given", "images"], [(right, given, count) for count, right, given in lines])


@result_parts.register
def metrics_parts(metrics: ClassificationMetrics, labels: Sequence[str] | None = None) -> tuple[Markup, ...]:
    """Draw the figures and the confusion matrix; labels without names are numbered."""
    matrix = metrics.confusion.tolist()
    figures = {
        "images with a known label": metrics.count,
        "top 1": percent(metrics.top1),
        "top 5": None if metrics.top5 is None else percent(metrics.top5),
        "mean per-class recall": percent(metrics.mean_per_class_recall),
        "expected calibration error": percent(metrics.error),
    }
    note = "" if len(matrix) <= LABELS else f"The {LABELS} commonest mistakes among {len(matrix)} labels."
    named = labels or [str(number) for number in range(len(matrix))]
    return (
        parts.section("Measured", parts.facts(figures)),
        parts.section("Confusion", confusion(matrix, named), note),
    )


@result_parts.register
def bars_parts(result: ZeroShotResult) -> tuple[Markup, ...]:
    """Draw the bars of a result whose images are not at hand."""
    chosen = list(range(len(result)))[: parts.MAX_IMAGES]
    threshold = 0.5 if result.multi_label else 0.0
    guesses = _guesses(result, chosen, None, None, 5, threshold)
    note = f"{parts.shown(len(chosen), len(result))}. {ROUNDED}"
    return (parts.section("", parts.classified(guesses), note),)


def _guesses(
    result: ZeroShotResult,
    chosen: Sequence[int],
    sources: Sequence[ImageSource] | None,
    truth: Sequence[str | None] | None,
    k: int,
    threshold: float,
) -> list[Guess]:
    part = ZeroShotResult(result.labels, result.logits[chosen], result.probs[chosen], result.multi_label)
    guesses = []
    for index, top, above in zip(chosen, part.top(k), part.above(threshold), strict=True):
        given = [entry.label for entry in (above if result.multi_label else above[:1])]
        right = None if truth is None else truth[index]
        known = "" if right is None else "right" if right in given else "wrong"
        words = ", ".join(given) or f"none reaches {percent(threshold)}"
        said = {"": words, "right": f"✓ {words}", "wrong": f"✗ {words}; right: {right}"}[known]
        image = None if sources is None else sources[index]
        bars = tuple((entry.label, entry.prob) for entry in top)
        guesses.append(Guess(bars, said, image, None if sources else f"image {index}", known))
    return guesses


def _targets(result: ZeroShotResult, truth: Sequence[str | None]) -> torch.Tensor:
    """Return the numbers of the right labels, int64 (n,); -1 where a label is not known."""
    places = {label: place for place, label in enumerate(result.labels)}
    if unknown := sorted({label for label in truth if label is not None and label not in places}):
        raise ValueError(f"unknown labels {unknown[:5]}; the result knows {', '.join(result.labels[:10])}")
    return torch.tensor([-1 if label is None else places[label] for label in truth], dtype=torch.long)


def _mistakes_first(result: ZeroShotResult, truth: Sequence[str | None]) -> list[int]:
    targets, (sure, given) = _targets(result, truth), result.probs.cpu().max(1)
    wrong = (targets >= 0) & (given != targets)
    return torch.argsort(wrong.double() * 2 + sure, descending=True, stable=True).tolist()


def _measured(result: ZeroShotResult, truth: Sequence[str | None]) -> tuple[Markup, ...]:
    targets = _targets(result, truth)
    known = targets >= 0
    if result.multi_label or not known.any():
        return ()
    return metrics_parts(classification_metrics(result.logits.cpu()[known], targets[known]), result.labels)
