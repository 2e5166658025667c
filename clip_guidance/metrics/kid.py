"""How far two sets of images are apart in the feature space of a CLIP, and in what way.

Kernel distance (Binkowski et al. 2018, arXiv:1801.01401): the unbiased squared maximum mean discrepancy with the
polynomial kernel k(x, y) = (x·y/d + 1)³. Unlike the Fréchet distance its expectation does not depend on the number of
images, so it can be compared across small sets. Its value depends on the CLIP: name it beside the number.
The published estimate averages 100 subsets of at most 1000; this one takes all pairs, which has the same expectation.

Precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991, equations 1 and 2) tell fidelity from variety: the
share of made images that look like a real one, and the share of real ones that a made one looks like.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clip_guidance.metrics.features import checked_sets
from clip_guidance.metrics.statistics import Interval, bounds, resample_counts


def kernel_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy, computed in float64 and in memory that grows with n + m alone.

    Args:
        features_a: (n, D), n at least 2.
        features_b: (m, D), m at least 2.

    Returns:
        0 in expectation where both sets come from one distribution; may be a little below.

    Raises:
        ValueError: the shapes do not fit.
    """
    a, b = checked_sets(features_a, features_b)
    within = mean_kernel(a, a, _kernel, others_only=True) + mean_kernel(b, b, _kernel, others_only=True)
    return within - 2 * mean_kernel(a, b, _kernel)


def mean_kernel(
    x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor], others_only: bool = False, chunk: int = 1024
) -> float:
    """Mean of a kernel over the pairs of two sets, of which a tile at a time is held.

    Args:
        x: (n, D).
        y: (m, D).
        kernel: (i, D) and (j, D) to (i, j).
        others_only: y is x, and no point is paired with itself.
        chunk: side of a tile.
    """
    total = x.new_zeros((), dtype=torch.float64)
    for i, rows in enumerate(x.split(chunk)):
        for j, columns in enumerate(y.split(chunk)):
            tile = kernel(rows, columns)
            total += tile.sum() - tile.trace() if others_only and i == j else tile.sum()
    return total.item() / (len(x) * (len(y) - others_only))


def kernel_distance_interval(
    features_a: Tensor, features_b: Tensor, resamples: int = 1000, probability: float = 0.95, seed: int = 0
) -> Interval:
    """:func:`kernel_distance` and its percentile bootstrap interval over the images of ``features_a``.

    ``features_b``, the reference, is held: the interval says how far the distance would move with other images of
    the same kind as a's. Pairs of copies of one image, which a resample has, are left out as within one image.

    Args:
        features_a: (n, D), n at least 2.
        features_b: (m, D), m at least 2.
        resamples: number of resamples of n images.
        probability: that of the interval, in (0, 1).
        seed: of the resamples; equal seeds draw equal indices, so that intervals of paired sets can be compared.
    """
    a, b = checked_sets(features_a, features_b)
    between, within_b = _kernel(a, b).mean(1), _within(_kernel(b, b))
    kernel = _kernel(a, a).fill_diagonal_(0)
    counts = resample_counts(len(a), resamples, seed).to(a)
    pairs = len(a) ** 2 - counts.square().sum(1)  # of different images
    drawn = ((counts @ kernel) * counts).sum(1) / pairs + within_b - 2 * counts @ between / len(a)
    return Interval(kernel_distance(a, b), *bounds(drawn, probability))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(kernel: Tensor) -> Tensor:
    """Mean over pairs of different images."""
    return (kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1))
