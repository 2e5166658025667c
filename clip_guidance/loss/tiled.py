"""The contrastive objective without its N x N matrix, exact on one process and on many.

``loss.py`` has the objective itself (Radford et al. 2021, figure 3) and its plain form, which this equals. With unit
embeddings a_i of images and b_j of texts, l_ij = t·a_i·b_j, and q_ij the share of text j in what image i should
choose (1 for its own caption),

    loss = 1/2N · Σ_i (logsumexp_j l_ij − Σ_j q_ij l_ij)  +  1/2N · Σ_j (logsumexp_i l_ij − Σ_i q_ij l_ij)
    ∂loss/∂l_ij = (softmax_j l_i· + softmax_i l_·j − 2 q_ij) / 2N

Rows are taken a tile at a time: the sum over a row is complete within it, that over a column is kept as a running
maximum and sum (Milakov & Gimelshein 2018, arXiv:1805.02867). Backward makes each tile again. Memory is one tile
beside what is of the size of the embeddings.

On W processes each has its own rows and all texts, which are gathered; the sums over columns are joined by one maximum
and one sum over the processes, so images are never gathered. The value is that of the global batch on every process.
Gradients are W times those of the global loss, since data parallelism averages them over the processes: what a
parameter gets is then the gradient that one process with the global batch would have given it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip_guidance.loss.contrastive import MAX_LOGIT_SCALE, at_least_float32, check_pairs
from clip_guidance.loss.distributed import World

MAX_FACTOR = math.exp(MAX_LOGIT_SCALE)
TILE = 2**23  # elements: 32 MB in float32, and two or three of that size live at a time


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
    """:func:`~clip_guidance.loss.contrastive.contrastive_loss` without its N x N matrix, over all processes.

    Args:
        image_embeds: (n, d) of this process, need not be unit vectors.
        text_embeds: (n, d); row i is the caption of image i.
        logit_scale: log of the inverse temperature, one element.
        groups: int (n,); pairs with equal entries, on whatever process, have the same caption.
        positives: what pairs of one group are to each other. "own": nothing, their logits are left out. "all": right
            too, each a share of 1 / size of the group (UniCL, Yang et al. 2022, arXiv:2204.03610, equation 3).
        tile: logits at a time.
        process_group: of torch.distributed; the default one where it is initialised.

    Returns:
        The loss of the global batch, a scalar in nats, in at least float32.

    Raises:
        ValueError: the shapes do not fit, or processes have different numbers of pairs.
    """
    check_pairs(image_embeds, text_embeds, groups)
    if positives not in ("own", "all"):
        raise ValueError(f'positives: expected "own" or "all", got {positives!r}')
    with torch.autocast(image_embeds.device.type, enabled=False):
        images, texts = (F.normalize(at_least_float32(x), dim=-1) for x in (image_embeds, text_embeds))
        factor = at_least_float32(logit_scale).reshape(()).clamp(max=MAX_LOGIT_SCALE).exp().to(images.dtype)
        return _Tiled.apply(images, texts, factor, groups, positives == "all", tile, process_group)


class _Tiled(torch.autograd.Function):
    """Unit vectors (n, d) twice and the factor t to the loss."""

    @staticmethod
    def forward(ctx, images, texts, factor, groups, shared, tile, process_group):  # type: ignore[no-untyped-def]
        world = World(process_group)
        logits_of = Tiles(images, world.gather(texts), factor, groups, shared, tile, world)
        total = len(logits_of.texts)
        rows, chosen = images.new_empty(len(images)), images.new_zeros(())
        # the least finite number, as a column may be left out of a whole tile, and inf - inf is nothing
        high, sums = images.new_full((total,), torch.finfo(images.dtype).min), images.new_zeros(total)
        for where, logits in logits_of:
            chosen += logits_of.chosen(logits, where)
            rows[where] = logits.logsumexp(1)
            higher = torch.maximum(high, logits.amax(0))
            sums.mul_((high - higher).exp_()).add_(logits.sub_(higher).exp_().sum(0))
            high = higher
        columns = world.logsumexp(high, sums)
        ctx.save_for_backward(images, texts, factor, rows, columns)
        ctx.rest = groups, shared, tile, world
        return (world.sum(rows.sum() - 2 * chosen) + columns.sum()) / (2 * total)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        images, texts, factor, rows, columns = ctx.saved_tensors
        groups, shared, tile, world = ctx.rest
        logits_of = Tiles(images, world.gather(texts), factor, groups, shared, tile, world)
        grad_images, grad_texts = torch.empty_like(images), torch.zeros_like(logits_of.texts)
        grad_factor = images.new_zeros(())
        for where, logits in logits_of:
            weights = (logits - rows[where, None]).exp_().add_((logits - columns).exp_())  # 0 where a logit is left out
            logits_of.subtract_right(weights, where)
            grad_factor += weights.mul(logits.clamp_(min=-4 * MAX_FACTOR)).sum()  # 0 times -inf is not 0
            torch.mm(weights, logits_of.texts, out=grad_images[where])
            grad_texts.addmm_(weights.T, images[where])
        scale = grad * world.size / (2 * len(logits_of.texts))  # times size: see the top of this file
        grad_texts = world.own_share(grad_texts)
        return scale * factor * grad_images, scale * factor * grad_texts, scale * grad_factor / factor, *[None] * 4


class Tiles:
    """Rows of logits, a tile at a time, each with the slice of this process's rows that it holds."""

    def __init__(
        self,
        images: Tensor,
        texts: Tensor,
        factor: Tensor,
        groups: Tensor | None,
        shared: bool,
        tile: int,
        world: World,
    ):
        self.images, self.texts, self.factor, self.shared = images, texts, factor, shared
        self.first = world.rank * len(images)  # column of the caption of this process's row 0
        self.rows = max(1, tile // len(texts))
        self.groups = groups
        self.all_groups = None if groups is None else world.gather(groups)
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

    def chosen(self, logits: Tensor, where: slice) -> Tensor:
        """Σ q_ij l_ij over the tile."""
        if self.groups is not None and self.shared:
            return (logits.masked_fill(~self._same(where), 0.0) * self.share).sum()
        return logits[self._own(where)].sum()

    def subtract_right(self, weights: Tensor, where: slice) -> None:
        """weights − 2q over the tile, in place."""
        if self.groups is not None and self.shared:
            weights.sub_(self._same(where) * (2 * self.share))
        else:
            weights[self._own(where)] -= 2

    def right(self, where: slice) -> Tensor:
        """Bool, which text is right for which row of the tile, for ``shared`` groups."""
        if self.groups is not None:
            return self._same(where)
        right = torch.zeros(where.stop - where.start, len(self.texts), dtype=torch.bool, device=self.images.device)
        right[self._own(where)] = True
        return right

    def _same(self, where: slice) -> Tensor:
        if self.groups is None or self.all_groups is None:
            raise RuntimeError("without groups no pairs are the same")
        return self.groups[where, None] == self.all_groups

    def _own(self, where: slice) -> tuple[Tensor, Tensor]:
        rows = torch.arange(where.stop - where.start, device=self.images.device)
        return rows, rows + where.start + self.first
