"""Fréchet distance (FID) of two sets of features, taken for normal distributions.

    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½)

Heusel et al. 2017, arXiv:1706.08500. On CLIP's embeddings it is CLIP-FID (Kynkäänniemi et al. 2023, arXiv:2203.06026;
clean-fid's ``clip_vit_b_32``, which takes the projections *before* they are scaled to unit length). The estimate is
biased upwards, more so with fewer images: compare sets of one size, of many more images than features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clip_guidance.metrics.features import checked_sets


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Compute the Fréchet distance of two sets of features, in float64.

    The trace of the root is found without a root of the asymmetric Σ₁Σ₂: with S = Σ₁^½ it has the eigenvalues of the
    symmetric SΣ₂S. So no complex number appears where the covariances are singular.

    Args:
        features_a: Features (n, D), n at least 2.
        features_b: Features (m, D), m at least 2.

    Raises:
        ValueError: The shapes do not fit.

    Example:
        >>> import torch
        >>> features = torch.eye(3)
        >>> round(frechet_distance(features, features + 1), 6)  # three coordinates, each moved by 1
        3.0
    """
    a, b = checked_sets(features_a, features_b)
    covariance_a, covariance_b = torch.cov(a.T).view(a.shape[1], -1), torch.cov(b.T).view(b.shape[1], -1)
    values, vectors = torch.linalg.eigh(covariance_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    trace_of_root = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    traces = covariance_a.trace() + covariance_b.trace() - 2 * trace_of_root
    return ((a.mean(0) - b.mean(0)).square().sum() + traces).item()
