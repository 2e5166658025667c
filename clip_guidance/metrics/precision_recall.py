"""Precision and recall of sets (Kynkäänniemi et al. 2019, arXiv:1904.06991, equations 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clip_guidance.metrics.features import checked_sets


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1]."""

    precision: float
    recall: float


def precision_recall(features: Tensor, real: Tensor, neighbours: int = 3) -> PrecisionRecall:
    """Precision and recall of made images against real ones.

    A set's manifold is the union of balls around its images, each reaching to its own ``neighbours``-th nearest of
    the set. Both shares grow with the size of the set that makes the manifold: compare sets of one size.

    Args:
        features: (n, D) of the made images, n above ``neighbours``.
        real: (m, D), m above ``neighbours``.
        neighbours: k of the paper, which uses 3.

    Raises:
        ValueError: there are too few images.
    """
    made, real = checked_sets(features, real)
    if min(len(made), len(real)) <= neighbours:
        raise ValueError(f"expected more than {neighbours} images in each set, got {len(made)} and {len(real)}")

    def covered(points: Tensor, centres: Tensor) -> float:
        radii = torch.cdist(centres, centres).kthvalue(neighbours + 1, dim=1).values  # the nearest is itself
        return (torch.cdist(points, centres) <= radii).any(1).double().mean().item()

    return PrecisionRecall(covered(made, real), covered(real, made))
