"""Kernel distance (KID) of two sets of image features.

Binkowski et al. 2018, arXiv:1801.01401: the unbiased squared maximum mean discrepancy with the polynomial kernel
k(x, y) = (x·y/d + 1)³. Unlike the Fréchet distance its expectation does not depend on the number of images, so it can
be compared across small sets. Its value depends on the CLIP whose features are compared: name the CLIP beside the
number. The published estimate averages 100 subsets of at most 1000 images; this one takes all pairs, which has the same
expectation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clip_guidance.metrics.features import checked_sets
from clip_guidance.metrics.statistics import Interval, bounds, resample_counts


def kernel_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Compute the unbiased squared maximum mean discrepancy, in float64.

    Memory grows with n + m alone.

    Args:
        features_a: Features (n, D), n at least 2, such as :func:`~clip_guidance.metrics.features.image_features`.
        features_b: Features (m, D), m at least 2.

    Returns:
        0 in expectation where both sets come from one distribution; the estimate may be a little below.

    Raises:
        ValueError: The shapes do not fit.

    Example:
        >>> import torch
        >>> features = torch.eye(3)
        >>> round(kernel_distance(features, features + 1), 3)
        13.716
    """
    a, b = checked_sets(features_a, features_b)
    within = mean_kernel(a, a, _kernel, others_only=True) + mean_kernel(b, b, _kernel, others_only=True)
    return within - 2 * mean_kernel(a, b, _kernel)


def mean_kernel(
    x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor], others_only: bool = False, chunk: int = 1024
) -> float:
    """Average a kernel over the pairs of two sets, of which one tile at a time is held in memory.

    Args:
        x: Features (n, D).
        y: Features (m, D).
        kernel: Maps (i, D) and (j, D) to (i, j).
        others_only: Whether y is x and no point is paired with itself.
        chunk: Side of a tile.
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
    """Compute the kernel distance with its percentile bootstrap interval over the images of ``features_a``.

    ``features_b``, the reference, is fixed: the interval says how far the distance would move with other images of the
    same kind as those of ``features_a``. A resample holds copies of one image; pairs of such copies are left out, as
    pairs
    within one image are.

    Args:
        features_a: Features (n, D), n at least 2.
        features_b: Features (m, D), m at least 2.
        resamples: Number of resamples of n images.
        probability: Probability of the interval, in (0, 1).
        seed: Seed of the resamples; equal seeds draw equal indices, so that intervals of paired sets can be compared.
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
    """Average over pairs of different images."""
    return (kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1))
