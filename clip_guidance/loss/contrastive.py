"""The contrastive loss of CLIP (Radford et al. 2021, arXiv:2103.00020, figure 3): the plain reference.

logits[i, j] = exp(logit_scale) · cos(image_i, text_j)
loss = ½ · mean_i CE(logits[i, :], i) + ½ · mean_j CE(logits[:, j], j)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_guidance._tensors import at_least_float32, unit_vectors

MAX_LOGIT_SCALE = math.log(100)  # the temperature is "clipped to prevent scaling the logits by more than 100" (2.5)


def similarity_logits(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
    """Compute exp(logit_scale) · cos of every image with every text.

    Args:
        image_embeds: (N, d), need not be unit vectors.
        text_embeds: (M, d), need not be unit vectors.
        logit_scale: Log of the inverse temperature, one element. It is clamped to at most ln 100, above which its
            gradient is zero.

    Returns:
        Logits (N, M), in float32, or float64 where the embeddings are.

    Example:
        >>> import clip_guidance as cg
        >>> import torch
        >>> cg.loss.similarity_logits(torch.eye(2), torch.tensor([[3.0, 0.0]]), torch.tensor([0.0]))
        tensor([[1.],
                [0.]])
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        image_embeds, text_embeds = (unit_vectors(x) for x in (image_embeds, text_embeds))
        factor = at_least_float32(logit_scale).reshape(()).clamp(max=MAX_LOGIT_SCALE).exp()
        return factor * image_embeds @ text_embeds.T


def contrastive_loss(
    image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, groups: Tensor | None = None
) -> Tensor:
    """Compute CLIP's loss: the symmetric cross-entropy over the N × N matrix of scaled cosines.

    Every other text of the batch is a negative of an image, and every other image one of a text. Memory grows with
    N²; :func:`tiled_contrastive_loss` gives the same value without the matrix, and over several processes.

    Args:
        image_embeds: (N, d), need not be unit vectors.
        text_embeds: (N, d); row i is the caption of image i.
        logit_scale: Log of the inverse temperature, one element; clamped to at most ln 100.
        groups: Int (N,); pairs with equal entries have the same caption and are not each other's negatives: their
            off-diagonal logits are left out of both softmaxes. By default every pair is a group of its own.

    Returns:
        The loss, a scalar in nats, at least 0; ln N where all cosines are equal.

    Raises:
        ValueError: The shapes do not fit.

    Example:
        >>> import clip_guidance as cg
        >>> import torch
        >>> embeds = torch.eye(4)
        >>> cg.loss.contrastive_loss(embeds, embeds, torch.tensor([2.0]))
        tensor(0.0019)
        >>> cg.loss.contrastive_loss(embeds, torch.ones(4, 4), torch.tensor([2.0]))  # ln 4
        tensor(1.3863)
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
    """Check the shapes of N pairs.

    Raises:
        ValueError: The embeddings have different shapes, or ``groups`` does not have one entry per pair.
    """
    if image_embeds.ndim != 2 or image_embeds.shape != text_embeds.shape:
        raise ValueError(
            "expected image_embeds and text_embeds of one shape (N, d), got "
            f"{tuple(image_embeds.shape)} and {tuple(text_embeds.shape)}"
        )
    if groups is not None and groups.shape != (len(image_embeds),):
        raise ValueError(
            f"expected groups of shape ({len(image_embeds)},), one entry per pair, got {tuple(groups.shape)}"
        )
