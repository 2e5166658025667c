"""CMMD: how far two sets of images are apart, by a Gaussian kernel on CLIP embeddings.

Jayasumana et al. 2024, "Rethinking FID: Towards a Better Evaluation Metric for Image Generation" (arXiv:2401.09603):

    CMMD = 1000 · (mean k(x, x') + mean k(y, y') − 2 mean k(x, y)),    k(x, y) = exp(−‖x − y‖² / (2 · 10²))

over all pairs, an image and itself included, as in the authors' code. The estimate is therefore biased: two sets
from one distribution are 2000 · (1 − E k) / N apart, so compare sets of one size. The published numbers are those of
OpenAI's ViT-L/14 at 336 pixels on unit embeddings; another CLIP gives others.

For unit vectors k is at least exp(−4 / 200), so the three means nearly cancel. Therefore k − 1 is averaged, without
rounding (``expm1``) and in float64. One tile of the matrix of pairs is held in memory at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clip_guidance.metrics.features import checked_sets
from clip_guidance.metrics.kid import mean_kernel

BANDWIDTH, SCALE = 10.0, 1000.0


def cmmd(embeds: Tensor, reference: Tensor, bandwidth: float = BANDWIDTH) -> float:
    """Compute the CMMD of two sets of embeddings.

    Args:
        embeds: Unit vectors (n, d), n at least 2.
        reference: Unit vectors (m, d), m at least 2.
        bandwidth: σ of the kernel, above 0; the published value is 10.

    Returns:
        0 for equal sets, else above; at most about 40 for unit vectors and the published bandwidth.

    Raises:
        ValueError: The shapes do not fit, or the bandwidth is not above 0.

    Example:
        >>> import torch
        >>> embeds = torch.eye(4)
        >>> cmmd(embeds, embeds), round(cmmd(embeds, -embeds), 2)
        (0.0, 9.9)
    """
    if not bandwidth > 0:
        raise ValueError(f"expected a bandwidth above 0, got {bandwidth}")
    x, y = checked_sets(embeds, reference)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
        return torch.expm1(squares / (-2 * bandwidth**2))

    return SCALE * (mean_kernel(x, x, kernel) + mean_kernel(y, y, kernel) - 2 * mean_kernel(x, y, kernel))
