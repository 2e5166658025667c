"""The sigmoid objective of SigLIP (Zhai et al. 2023, arXiv:2303.15343, algorithm 1), without its N x N matrix.

    loss = −1/N · Σ_ij log σ(z_ij · (t·a_i·b_j + bias)),    z_ij = 1 where text j is right for image i, else −1

Every term stands alone, so the gradient of a tile is known as soon as the tile is: forward and backward are one pass,
and what is kept for backward is of the size of the embeddings. On many processes as :mod:`.tiled_loss`, whose tiles
these are: own rows against all texts, gradients W times those of the global batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip_guidance.loss.contrastive import MAX_LOGIT_SCALE, at_least_float32, check_pairs
from clip_guidance.loss.distributed import World
from clip_guidance.loss.tiled import TILE, Tiles

INITIAL_BIAS = -10.0  # section 3.2: begins where nearly every pair is wrong, as nearly every pair is


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
    """SigLIP's loss of the global batch.

    Args:
        image_embeds: (n, d) of this process, need not be unit vectors.
        text_embeds: (n, d); row i is the caption of image i.
        logit_scale: log of the factor t, one element.
        logit_bias: added to every logit, one element; trained from :data:`INITIAL_BIAS`.
        groups: int (n,); pairs with equal entries, on whatever process, have the same caption: each is right for each.
        tile: logits at a time.
        process_group: of torch.distributed; the default one where it is initialised.

    Returns:
        A scalar in nats an image, in at least float32.

    Raises:
        ValueError: the shapes do not fit, or processes have different numbers of pairs.
    """
    check_pairs(image_embeds, text_embeds, groups)
    with torch.autocast(image_embeds.device.type, enabled=False):
        images, texts = (F.normalize(at_least_float32(x), dim=-1) for x in (image_embeds, text_embeds))
        factor = at_least_float32(logit_scale).reshape(()).clamp(max=MAX_LOGIT_SCALE).exp().to(images.dtype)
        bias = logit_bias.reshape(()).to(images.dtype)
        return _Sigmoid.apply(images, texts, factor, bias, groups, tile, process_group)


class _Sigmoid(torch.autograd.Function):
    """Unit vectors (n, d) twice, the factor t and the bias to the loss."""

    @staticmethod
    def forward(ctx, images, texts, factor, bias, groups, tile, process_group):  # type: ignore[no-untyped-def]
        world = World(process_group)
        logits_of = Tiles(images, world.gather(texts), factor, groups, True, tile, world)
        grad_images, grad_texts = torch.empty_like(images), torch.zeros_like(logits_of.texts)
        value, grad_factor, grad_bias = (images.new_zeros(()) for _ in range(3))
        for where, logits in logits_of:
            sign = logits_of.right(where).to(images.dtype).mul_(2).sub_(1)
            signed = (logits + bias).mul_(sign)
            value -= F.logsigmoid(signed).sum()
            weights = signed.neg_().sigmoid_().mul_(sign).neg_()  # ∂loss/∂l_ij = −z σ(−z l), times N
            grad_factor += weights.mul(logits).sum()
            grad_bias += weights.sum()
            torch.mm(weights, logits_of.texts, out=grad_images[where])
            grad_texts.addmm_(weights.T, images[where])
        total = len(logits_of.texts)
        scale = world.size / total  # times size: see tiled_loss
        grads = factor * grad_images, factor * world.own_share(grad_texts), grad_factor / factor, grad_bias
        ctx.save_for_backward(*(scale * grad for grad in grads))
        return world.sum(value) / total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return *(grad * saved for saved in ctx.saved_tensors), None, None, None
