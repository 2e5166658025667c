"""The supervised contrastive loss: images of one concept attract each other (Khosla et al. 2020, arXiv:2004.11362).

With unit embeddings z_i, P(i) the other images of the group of i, and t the inverse temperature (equation 2),

    loss = mean over i with P(i) ≠ ∅ of   −1/|P(i)| · Σ_{p ∈ P(i)} log softmax_{j ≠ i}(t z_i·z_j)_p
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clip_guidance.loss.contrastive import similarity_logits


def supervised_contrastive_loss(embeds: Tensor, groups: Tensor, logit_scale: Tensor) -> Tensor:
    """Compute the loss of embeddings that are to be near those of their own group.

    Args:
        embeds: (N, d), need not be unit vectors.
        groups: Int (N,); embeddings with equal entries are each other's positives, all others negatives.
        logit_scale: Log of the inverse temperature, one element; clamped to at most ln 100.

    Returns:
        A scalar in nats; 0 where no embedding has another one of its group.

    Raises:
        ValueError: The shapes do not fit.

    Example:
        >>> import clip_guidance as cg
        >>> import torch
        >>> embeds = torch.eye(2).repeat(2, 1)  # the first equals the third, the second the fourth
        >>> cg.loss.supervised_contrastive_loss(embeds, torch.tensor([0, 1, 0, 1]), torch.tensor([4.0]))
        tensor(0.)
        >>> cg.loss.supervised_contrastive_loss(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]), torch.tensor([1.0]))
        tensor(1.0986)
    """
    if embeds.ndim != 2 or groups.shape != embeds.shape[:1]:
        raise ValueError(
            f"expected embeds (N, d) and groups (N,), got {tuple(embeds.shape)} and {tuple(groups.shape)}"
        )
    itself = torch.eye(len(embeds), dtype=torch.bool, device=embeds.device)
    logits = similarity_logits(embeds, embeds, logit_scale).masked_fill(itself, -math.inf)
    positive = (groups[:, None] == groups) & ~itself
    count = positive.sum(1)
    logs = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(~positive, 0.0)
    anchors = count > 0
    if not anchors.any():
        return logs.sum()  # 0, with a gradient of 0
    return -(logs.sum(1)[anchors] / count[anchors]).mean()
