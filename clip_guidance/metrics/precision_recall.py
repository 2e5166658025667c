"""Precision and recall of sets of images: fidelity told from variety.

Kynkäänniemi et al. 2019, arXiv:1904.06991, equations 1 and 2: precision is the share of generated images that look like
a real one, recall the share of real images that a generated one looks like.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clip_guidance.metrics.features import checked_sets


@dataclass(frozen=True)
class PrecisionRecall:
    """Hold precision and recall, shares in [0, 1]."""

    precision: float
    recall: float


def precision_recall(features: Tensor, real: Tensor, neighbours: int = 3) -> PrecisionRecall:
    """Measure precision and recall of generated images against real ones.

    The manifold of a set is the union of balls around its images, each reaching to its own ``neighbours``-th nearest
    image of the set. Both shares grow with the size of the set that makes the manifold: compare sets of one size.

    Args:
        features: Features (n, D) of the generated images, n above ``neighbours``.
        real: Features (m, D) of the real images, m above ``neighbours``.
        neighbours: k of the paper, which uses 3.

    Raises:
        ValueError: There are too few images, or the shapes do not fit.

    Example:
        >>> import torch
        >>> real = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
        >>> precision_recall(real[:3], real, neighbours=1)  # faithful, but half of the variety is missing
        PrecisionRecall(precision=1.0, recall=0.5)
    """
    made, real = checked_sets(features, real)
    if min(len(made), len(real)) <= neighbours:
        raise ValueError(f"expected more than {neighbours} images in each set, got {len(made)} and {len(real)}")

    def covered(points: Tensor, centres: Tensor) -> float:
        radii = torch.cdist(centres, centres).kthvalue(neighbours + 1, dim=1).values  # each image is its own nearest
        return (torch.cdist(points, centres) <= radii).any(1).double().mean().item()

    return PrecisionRecall(covered(made, real), covered(real, made))
