"""Quality of a classifier and of its probabilities, measured on images whose labels are known.

The definitions are CLIP_benchmark's (LAION): top-1 and top-5 by the order of the logits, mean per-class recall
(balanced accuracy), and uninterpolated average precision for several labels per image. Calibration is temperature
scaling (Guo et al. 2017, arXiv:1706.04599, section 4.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clip_guidance._display import DisplayMixin

MAX_FACTOR = 1e4  # factor on the logits beyond which no temperature is taken to fit


@dataclass(frozen=True)
class ClassificationMetrics(DisplayMixin):
    """Hold the measured quality of n classified images; a notebook shows it as figures and a confusion matrix.

    Attributes:
        count: Number of images, n.
        top1: Share whose right label has the highest logit, in [0, 1]; a tie is wrong.
        top5: Share whose right label is among the five highest; None with fewer than five labels.
        mean_per_class_recall: Mean, over the labels that occur, of the share of their images that is right.
        confusion: Images of label i that were given label j, int64 (L, L).
        error: Expected calibration error of the probabilities, see :func:`calibration_error`.
    """

    count: int
    top1: float
    top5: float | None
    mean_per_class_recall: float
    confusion: Tensor
    error: float


def classification_metrics(logits: Tensor, targets: Tensor) -> ClassificationMetrics:
    """Measure logits against the right labels.

    Args:
        logits: Logits of n images and L labels, (n, L).
        targets: The right labels, int64 (n,), in [0, L).

    Raises:
        ValueError: There is no image, or the shapes do not fit.

    Example:
        >>> import torch
        >>> found = classification_metrics(torch.tensor([[2.0, 1.0], [0.0, 3.0], [4.0, 0.0]]), torch.tensor([0, 1, 1]))
        >>> round(found.top1, 2), found.mean_per_class_recall, found.confusion.tolist()
        (0.67, 0.75, [[1, 0], [1, 1]])
    """
    if not len(logits) or logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(f"expected logits (n, L) and targets (n,), got {tuple(logits.shape)}, {tuple(targets.shape)}")
    right = logits.gather(1, targets[:, None])
    ahead = (~(logits < right)).sum(1) - 1  # logits not below the right one's, without itself
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
    """Compute the expected calibration error of probabilities (Guo et al. 2017, equation 3).

    Over bins of the highest probability, it is the mean of ``|share of right images − mean probability|``, each bin
    weighted by its number of images.

    Args:
        probs: Probabilities (n, L); each row sums to one.
        targets: The right labels, int64 (n,).
        bins: Number of bins of equal width.

    Returns:
        In [0, 1]; 0 for a calibrated classifier.
    """
    sure, given = probs.double().max(1)
    right = (given == targets).double()
    which = (sure * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.double).scatter_add_(0, which, right - sure)
    return (gap.abs().sum() / len(probs)).item()


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Fit the temperature T whose softmax(logits / T) makes the right labels likeliest.

    The mean log-likelihood is concave in β = 1 / T, with the slope mean(l_right − Σ_j p_j l_j); the zero is found by
    bisection, exact to rounding.

    Args:
        logits: Logits (n, L) of a labelled sample. Some ten images are enough, since one number is fitted.
        targets: The right labels, int64 (n,).

    Returns:
        T, above 0.

    Raises:
        ValueError: No temperature is best: every image is right (T would be 0), or the images are right no more often
            than by chance (T would be infinite).
    """
    logits, rows = logits.double(), torch.arange(len(targets))

    def slope(beta: float) -> float:
        expected = ((beta * logits).softmax(1) * logits).sum(1)
        return (logits[rows, targets] - expected).mean().item()

    low, high = math.log(1 / MAX_FACTOR), math.log(MAX_FACTOR)
    if slope(math.exp(high)) >= 0:
        raise ValueError(f"all {len(targets)} labelled images are right: no finite confidence fits; add harder ones")
    if slope(math.exp(low)) <= 0:
        raise ValueError(f"the {len(targets)} labelled images are right no more often than by chance")
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) > 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def average_precision(scores: Tensor, positives: Tensor) -> float:
    """Compute uninterpolated average precision; ties count together.

    It is the mean, over the positives, of the precision among all samples that score no less.

    Args:
        scores: Scores (n,); higher is more likely.
        positives: Which samples are positive, bool (n,).

    Returns:
        In (0, 1]; nan without a positive.
    """
    at = scores[positives]
    if not len(at):
        return math.nan
    above = (scores[None, :] >= at[:, None]).sum(1)
    true = (at[None, :] >= at[:, None]).sum(1)
    return (true.double() / above).mean().item()
