"""The contrastive objective of CLIP (Radford et al. 2021, arXiv:2103.00020, figure 3), the plain reference.

logits[i, j] = exp(logit_scale) · cos(image_i, text_j)
loss = ½ · mean_i CE(logits[i, :], i) + ½ · mean_j CE(logits[:, j], j)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LOGIT_SCALE = math.log(100)  # the temperature is "clipped to prevent scaling the logits by more than 100" (2.5)


def similarity_logits(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
    """exp(logit_scale) · cos of every image with every text, (N, M) from (N, d) and (M, d), in at least float32.

    ``logit_scale`` is the log of the factor, of one element; it is held at or below ln 100, and its gradient is zero
    above.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        image_embeds, text_embeds = (F.normalize(at_least_float32(x), dim=-1) for x in (image_embeds, text_embeds))
        factor = at_least_float32(logit_scale).reshape(()).clamp(max=MAX_LOGIT_SCALE).exp()
        return factor * image_embeds @ text_embeds.T


def contrastive_loss(
    image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, groups: Tensor | None = None
) -> Tensor:
    """Symmetric cross-entropy over the N x N cosine matrix.

    Args:
        image_embeds: (N, d), need not be unit vectors.
        text_embeds: (N, d); row i is the caption of image i.
        logit_scale: log of the inverse temperature, one element.
        groups: int (N,); pairs with equal entries have the same caption and are not each other's negatives: their
            off-diagonal logits are left out of both softmaxes.

    Returns:
        The loss, a scalar in nats; ln N where the embeddings say nothing.

    Raises:
        ValueError: the shapes do not fit.
    """
    check_pairs(image_embeds, text_embeds, groups)
    logits = similarity_logits(image_embeds, text_embeds, logit_scale)
    count = len(logits)
    if groups is not None:
        same = groups[:, None] == groups[None, :]
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, -math.inf)
    target = torch.arange(count, device=logits.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def check_pairs(image_embeds: Tensor, text_embeds: Tensor, groups: Tensor | None = None) -> None:
    """Refuse what are no pairs.

    Raises:
        ValueError: the shapes do not fit.
    """
    if image_embeds.ndim != 2 or image_embeds.shape != text_embeds.shape:
        raise ValueError(
            "expected image_embeds and text_embeds of one shape (N, d), got "
            f"{tuple(image_embeds.shape)} and {tuple(text_embeds.shape)}"
        )
    if groups is not None and groups.shape != (len(image_embeds),):
        raise ValueError(
            f"expected groups of shape ({len(image_embeds)},), one entry a pair, got {tuple(groups.shape)}"
        )


def at_least_float32(x: Tensor) -> Tensor:
    """float64 as it is, anything else in float32."""
    return x if x.dtype == torch.float64 else x.float()
