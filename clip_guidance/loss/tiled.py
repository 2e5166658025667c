"""The contrastive loss without its N x N matrix, exact on one process and on many.

:mod:`.contrastive` has the loss itself (Radford et al. 2021, figure 3) in its plain form, which this one equals. With
unit embeddings a_i of images and b_j of texts, l_ij = t·a_i·b_j, and q_ij the target probability of text j for image
i (1 for its own caption),

    loss = 1/2N · Σ_i (logsumexp_j l_ij − Σ_j q_ij l_ij)  +  1/2N · Σ_j (logsumexp_i l_ij − Σ_i q_ij l_ij)
    ∂loss/∂l_ij = (softmax_j l_i· + softmax_i l_·j − 2 q_ij) / 2N

A tile is a number of whole rows: the sum over a row is complete within a tile, and the sum over a column is kept as a
running maximum and sum (Milakov & Gimelshein 2018, arXiv:1805.02867). Backward computes each tile again. Beside tensors
of the size of the embeddings, memory holds one tile.

Each of W processes has its own rows and all texts, which are gathered; the sums over columns are joined by one maximum
and one sum over the processes, so images are never gathered. Every process returns the loss of the global batch.
Gradients are W times those of the global loss, because data parallelism averages them over the processes: a parameter
then gets the gradient that one process with the global batch would have computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip_guidance._tensors import at_least_float32, unit_vectors
from clip_guidance.loss.contrastive import MAX_LOGIT_SCALE, check_pairs
from clip_guidance.loss.distributed import ProcessGroup

MAX_FACTOR = math.exp(MAX_LOGIT_SCALE)
TILE = 2**23  # elements: 32 MB in float32, and two or three tensors of that size exist at a time


def tiled_contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    groups: Tensor | None = None,
    *,
    positives: str = "own",
    tile: int = TILE,
    process_group: Any = None,
) -> Tensor:
    """Compute :func:`contrastive_loss` over all processes without its N × N matrix.

    Args:
        image_embeds: (n, d) of this process, need not be unit vectors.
        text_embeds: (n, d); row i is the caption of image i.
        logit_scale: Log of the inverse temperature, one element; clamped to at most ln 100.
        groups: Int (n,); pairs with equal entries, on whatever process, have the same caption. By default every pair
            is a group of its own.
        positives: What the pairs of one group are to each other. "own": neither positives nor negatives, their logits
            are left out. "all": positives too, each with the target probability 1 / size of the group (UniCL, Yang et
            al. 2022, arXiv:2204.03610, equation 3).
        tile: Number of logits that are in memory at a time; changes memory and speed, and the value only by rounding.
        process_group: A group of ``torch.distributed``; the default group where it is initialised.

    Returns:
        The loss of the global batch, a scalar in nats, in at least float32.

    Raises:
        ValueError: The shapes do not fit, ``positives`` is something else, or processes have different numbers of
            pairs.

    Example:
        >>> import clip_guidance as cg
        >>> import torch
        >>> embeds = torch.eye(4)
        >>> cg.loss.tiled_contrastive_loss(embeds, embeds, torch.tensor([2.0]))
        tensor(0.0019)
    """
    check_pairs(image_embeds, text_embeds, groups)
    if positives not in ("own", "all"):
        raise ValueError(f'positives: expected "own" or "all", got {positives!r}')
    with torch.autocast(image_embeds.device.type, enabled=False):
        images, texts = (unit_vectors(x) for x in (image_embeds, text_embeds))
        factor = at_least_float32(logit_scale).reshape(()).clamp(max=MAX_LOGIT_SCALE).exp().to(images.dtype)
        return _Tiled.apply(images, texts, factor, groups, positives == "all", tile, process_group)


class _Tiled(torch.autograd.Function):
    """Map unit vectors (n, d) of images and texts and the factor t to the loss."""

    @staticmethod
    def forward(ctx, images, texts, factor, groups, shared, tile, process_group):  # type: ignore[no-untyped-def]
        group = ProcessGroup(process_group)
        logits_of = Tiles(images, group.gather(texts), factor, groups, shared, tile, group)
        total = len(logits_of.texts)
        rows, targets = images.new_empty(len(images)), images.new_zeros(())
        # The lowest finite number: a column may be left out of a whole tile, and -inf minus -inf is NaN.
        maximum, sums = images.new_full((total,), torch.finfo(images.dtype).min), images.new_zeros(total)
        for where, logits in logits_of:
            targets += logits_of.target_sum(logits, where)
            rows[where] = logits.logsumexp(1)
            higher = torch.maximum(maximum, logits.amax(0))
            sums.mul_((maximum - higher).exp_()).add_(logits.sub_(higher).exp_().sum(0))
            maximum = higher
        columns = group.logsumexp(maximum, sums)
        ctx.save_for_backward(images, texts, factor, rows, columns)
        ctx.rest = groups, shared, tile, group
        return (group.sum(rows.sum() - 2 * targets) + columns.sum()) / (2 * total)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        images, texts, factor, rows, columns = ctx.saved_tensors
        groups, shared, tile, group = ctx.rest
        logits_of = Tiles(images, group.gather(texts), factor, groups, shared, tile, group)
        grad_images, grad_texts = torch.empty_like(images), torch.zeros_like(logits_of.texts)
        grad_factor = images.new_zeros(())
        for where, logits in logits_of:
            weights = (logits - rows[where, None]).exp_().add_((logits - columns).exp_())  # 0 where a logit is left out
            logits_of.subtract_targets(weights, where)
            grad_factor += weights.mul(logits.clamp_(min=-4 * MAX_FACTOR)).sum()  # 0 times -inf is not 0
            torch.mm(weights, logits_of.texts, out=grad_images[where])
            grad_texts.addmm_(weights.T, images[where])
        scale = grad * group.size / (2 * len(logits_of.texts))  # times W: see the top of this file
        grad_texts = group.own_rows(grad_texts)
        return scale * factor * grad_images, scale * factor * grad_texts, scale * grad_factor / factor, *[None] * 4


class Tiles:
    """Iterate over the tiles: the slice of this process's rows in a tile, and its logits."""

    def __init__(
        self,
        images: Tensor,
        texts: Tensor,
        factor: Tensor,
        groups: Tensor | None,
        shared: bool,
        tile: int,
        process_group: ProcessGroup,
    ):
        self.images, self.texts, self.factor, self.shared = images, texts, factor, shared
        self.first = process_group.rank * len(images)  # column of the caption of this process's row 0
        self.rows = max(1, tile // len(texts))
        self.groups = groups
        self.all_groups = None if groups is None else process_group.gather(groups)
        if self.all_groups is not None and shared:
            _, member_of, sizes = self.all_groups.unique(return_inverse=True, return_counts=True)
            self.share = (1 / sizes.to(images.dtype))[member_of]

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(self.images), self.rows):
            where = slice(start, min(start + self.rows, len(self.images)))
            logits = (self.factor * self.images[where]) @ self.texts.T
            if self.groups is not None and not self.shared:
                same = self._same(where)
                same[self._own(where)] = False
                logits.masked_fill_(same, -math.inf)
            yield where, logits

    def target_sum(self, logits: Tensor, where: slice) -> Tensor:
        """Compute Σ q_ij l_ij over the tile."""
        if self.groups is not None and self.shared:
            return (logits.masked_fill(~self._same(where), 0.0) * self.share).sum()
        return logits[self._own(where)].sum()

    def subtract_targets(self, weights: Tensor, where: slice) -> None:
        """Subtract 2q from the weights of the tile, in place."""
        if self.groups is not None and self.shared:
            weights.sub_(self._same(where) * (2 * self.share))
        else:
            weights[self._own(where)] -= 2

    def positives(self, where: slice) -> Tensor:
        """Mark which text is a positive of which row of the tile, as bool, for ``shared`` groups."""
        if self.groups is not None:
            return self._same(where)
        own = torch.zeros(where.stop - where.start, len(self.texts), dtype=torch.bool, device=self.images.device)
        own[self._own(where)] = True
        return own

    def _same(self, where: slice) -> Tensor:
        if self.groups is None or self.all_groups is None:
            raise RuntimeError("without groups no pairs are the same")
        return self.groups[where, None] == self.all_groups

    def _own(self, where: slice) -> tuple[Tensor, Tensor]:
        rows = torch.arange(where.stop - where.start, device=self.images.device)
        return rows, rows + where.start + self.first
