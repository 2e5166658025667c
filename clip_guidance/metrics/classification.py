"""How good a classifier is, and how much its probabilities are worth, once the right labels are known.

The definitions are CLIP_benchmark's (LAION): top-1 and top-5 by the order of the logits, mean per-class recall
(balanced accuracy), uninterpolated average precision for several labels an image, and for retrieval the share of
queries with a right answer among the first k. Calibration is temperature scaling (Guo et al. 2017,
arXiv:1706.04599, section 4.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

STEEPEST = 1e4  # factor of the logits beyond which a sample is taken to have no best one


@dataclass(frozen=True)
class ClassificationMetrics:
    """What is known of n classified images.

    Attributes:
        count: n.
        top1: share whose right label has the highest logit; a tie is wrong.
        top5: share with it among the five highest; None with fewer than five labels.
        mean_per_class_recall: mean over the labels that occur of the share of their images that is right.
        confusion: int64 (L, L), images of label i that were given label j.
        error: expected calibration error of the probabilities, see :func:`calibration_error`.
    """

    count: int
    top1: float
    top5: float | None
    mean_per_class_recall: float
    confusion: Tensor
    error: float

    def _repr_html_(self) -> str:
        from clip_guidance.report.classification import metrics_parts
        from clip_guidance.report.html.page import fragment

        return fragment(*metrics_parts(self))


def classification_metrics(logits: Tensor, targets: Tensor) -> ClassificationMetrics:
    """Of logits (n, L), and int64 targets (n,), the numbers of the right labels.

    Raises:
        ValueError: there is no image, or the shapes do not fit.
    """
    if not len(logits) or logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(f"expected logits (n, L) and targets (n,), got {tuple(logits.shape)}, {tuple(targets.shape)}")
    right = logits.gather(1, targets[:, None])
    ahead = (~(logits < right)).sum(1) - 1  # not below the right one, which is itself left out
    size, given = logits.shape[1], logits.argmax(1)
    confusion = torch.bincount(targets * size + given, minlength=size**2).view(size, size)
    hits = (ahead == 0).double()
    per_class = torch.zeros(size, dtype=torch.double).scatter_add_(0, targets, hits)
    counts = confusion.sum(1)
    return ClassificationMetrics(
        count=len(logits),
        top1=hits.mean().item(),
        top5=(ahead < 5).double().mean().item() if size >= 5 else None,
        mean_per_class_recall=(per_class[counts > 0] / counts[counts > 0]).mean().item(),
        confusion=confusion,
        error=calibration_error(logits.softmax(1), targets),
    )


def calibration_error(probs: Tensor, targets: Tensor, bins: int = 15) -> float:
    """Expected calibration error: ``|how often right − how sure|`` over bins of how sure, weighted by their images.

    Args:
        probs: (n, L), each row sums to one.
        targets: int64 (n,).
        bins: of equal width (Guo et al. 2017, equation 3).
    """
    sure, given = probs.double().max(1)
    right = (given == targets).double()
    which = (sure * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.double).scatter_add_(0, which, right - sure)
    return (gap.abs().sum() / len(probs)).item()


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature T whose softmax(logits / T) makes the right labels likeliest.

    The mean log-likelihood is concave in β = 1 / T, with the slope mean(l_right − Σ_j p_j l_j); the zero is found by
    bisection, exact to rounding.

    Args:
        logits: (n, L) of a labelled sample: some ten images are enough, since one number is fitted.
        targets: int64 (n,).

    Returns:
        T, above 0.

    Raises:
        ValueError: there is no best one: every image is right (T would be 0), or they are right no more often than
            by chance (it would be infinite).
    """
    logits, rows = logits.double(), torch.arange(len(targets))

    def slope(beta: float) -> float:
        expected = ((beta * logits).softmax(1) * logits).sum(1)
        return (logits[rows, targets] - expected).mean().item()

    low, high = math.log(1 / STEEPEST), math.log(STEEPEST)
    if slope(math.exp(high)) >= 0:
        raise ValueError(f"all {len(targets)} labelled images are right: no finite confidence fits; add harder ones")
    if slope(math.exp(low)) <= 0:
        raise ValueError(f"the {len(targets)} labelled images are right no more often than by chance")
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) > 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def average_precision(scores: Tensor, positives: Tensor) -> float:
    """Uninterpolated: the mean over positives of the precision among all that score no less; ties count together.

    Args:
        scores: (n,), higher is more likely.
        positives: bool (n,).

    Returns:
        In (0, 1]; nan without a positive.
    """
    at = scores[positives]
    if not len(at):
        return math.nan
    above = (scores[None, :] >= at[:, None]).sum(1)
    true = (at[None, :] >= at[:, None]).sum(1)
    return (true.double() / above).mean().item()
