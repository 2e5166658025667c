"""The sigmoid loss of SigLIP (Zhai et al. 2023, arXiv:2303.15343, algorithm 1), without its N x N matrix.

    loss = −1/N · Σ_ij log σ(z_ij · (t·a_i·b_j + bias)),    z_ij = 1 where text j is right for image i, else −1

Every term depends on one logit alone, so the gradient of a tile is known as soon as its logits are: forward and
backward are one pass, and what is kept for backward has the size of the embeddings. Several processes share a batch as
in :mod:`.tiled`, whose tiles are used here: each process compares its own images with all texts, and its gradients
are W times those of the global batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip_guidance._tensors import at_least_float32, unit_vectors
from clip_guidance.loss.contrastive import MAX_LOGIT_SCALE, check_pairs
from clip_guidance.loss.distributed import ProcessGroup
from clip_guidance.loss.tiled import TILE, Tiles

INITIAL_BIAS = -10.0  # section 3.2: nearly every pair is a negative, so training begins by predicting negatives


def sigmoid_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    groups: Tensor | None = None,
    *,
    tile: int = TILE,
    process_group: Any = None,
) -> Tensor:
    """Compute SigLIP's loss of the global batch: one binary decision per image and text.

    Args:
        image_embeds: (n, d) of this process, need not be unit vectors.
        text_embeds: (n, d); row i is the caption of image i.
        logit_scale: Log of the factor t, one element; clamped to at most ln 100.
        logit_bias: Added to every logit, one element; a trained bias begins at :data:`INITIAL_BIAS`.
        groups: Int (n,); pairs with equal entries, on whatever process, have the same caption, and each text of a
            group is a positive of each of its images. By default every pair is a group of its own.
        tile: Number of logits that are in memory at a time; changes memory and speed, not the value.
        process_group: A group of ``torch.distributed``; the default group where it is initialised.

    Returns:
        A scalar in nats per image, in at least float32.

    Raises:
        ValueError: The shapes do not fit, or processes have different numbers of pairs.

    Example:
        >>> import clip_guidance as cg
        >>> import torch
        >>> embeds, bias = torch.eye(4), torch.tensor([cg.loss.INITIAL_BIAS])
        >>> cg.loss.sigmoid_loss(embeds, embeds, torch.tensor([3.0]), bias)
        tensor(0.0002)
    """
    check_pairs(image_embeds, text_embeds, groups)
    with torch.autocast(image_embeds.device.type, enabled=False):
        images, texts = (unit_vectors(x) for x in (image_embeds, text_embeds))
        factor = at_least_float32(logit_scale).reshape(()).clamp(max=MAX_LOGIT_SCALE).exp().to(images.dtype)
        bias = logit_bias.reshape(()).to(images.dtype)
        return _Sigmoid.apply(images, texts, factor, bias, groups, tile, process_group)


class _Sigmoid(torch.autograd.Function):
    """Map unit vectors (n, d) of images and texts, the factor t and the bias to the loss."""

    @staticmethod
    def forward(ctx, images, texts, factor, bias, groups, tile, process_group):  # type: ignore[no-untyped-def]
        group = ProcessGroup(process_group)
        logits_of = Tiles(images, group.gather(texts), factor, groups, True, tile, group)
        grad_images, grad_texts = torch.empty_like(images), torch.zeros_like(logits_of.texts)
        value, grad_factor, grad_bias = (images.new_zeros(()) for _ in range(3))
        for where, logits in logits_of:
            sign = logits_of.positives(where).to(images.dtype).mul_(2).sub_(1)
            signed = (logits + bias).mul_(sign)
            value -= F.logsigmoid(signed).sum()
            weights = signed.neg_().sigmoid_().mul_(sign).neg_()  # ∂loss/∂l_ij = −z σ(−z l), times N
            grad_factor += weights.mul(logits).sum()
            grad_bias += weights.sum()
            torch.mm(weights, logits_of.texts, out=grad_images[where])
            grad_texts.addmm_(weights.T, images[where])
        total = len(logits_of.texts)
        scale = group.size / total  # times W: see :mod:`.tiled`
        grads = factor * grad_images, factor * group.own_rows(grad_texts), grad_factor / factor, grad_bias
        ctx.save_for_backward(*(scale * grad for grad in grads))
        return group.sum(value) / total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return *(grad * saved for saved in ctx.saved_tensors), None, None, None
