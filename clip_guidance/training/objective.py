"""The contrastive objective over batches larger than memory, the same on one process and on many.

Images and captions go through their towers a chunk at a time. A chunk keeps its embeddings and nothing else, the
loss is that of the whole batch on all processes (``tiled_loss.py``), and in the backward pass each chunk is run again:
the cached gradients of GradCache (Gao et al. 2021, arXiv:2101.06983, section 3.2), by way of gradient checkpointing
(Chen et al. 2016, arXiv:1604.06174). Chunks change memory and time, and nothing else.

Every chunk draws its random views and its dropout from a seed of its own, made of the step's seed and the chunk's place
in the global batch. So a chunk that is run again draws the same, and what is drawn does not depend on how many
processes share the batch.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from clip_guidance.clip import CLIP
from clip_guidance.loss.distributed import ProcessGroup
from clip_guidance.loss.sigmoid import INITIAL_BIAS, sigmoid_loss
from clip_guidance.loss.tiled import TILE, tiled_contrastive_loss
from clip_guidance.training.adversarial import moved_against
from clip_guidance.training.class_names import NameLoss

LOSSES = ("softmax", "sigmoid")


class ContrastiveObjective(nn.Module):
    """A CLIP and its loss, to be wrapped by DDP or FSDP2 as a whole.

    Gradients of the wrapped module are those of one process with the global batch: no flag is needed for it.

    Args:
        clip: what is trained.
        chunk_size: pairs that go through the towers at a time; None for all that a process has.
        loss: "softmax", CLIP's symmetric cross-entropy, or "sigmoid", SigLIP's, which adds a ``logit_bias``.
        positives: of "softmax": what pairs of one caption are to each other, see
            :func:`~clip_guidance.loss.tiled.tiled_contrastive_loss`.
        views: what images (n, 3, H, W) in [0, 1] go through first; may draw from torch's global random state, which
            is the chunk's own then.
        pixel_values: what their views go through to the image tower's ``pixel_values``; nothing is drawn there.
        cached_images: the image tower is locked and was run before: what :meth:`forward` takes for images are their
            embeddings (n, d), see :mod:`clip_guidance.training.frozen_embeds`.
        names: a loss over all names, for a locked text encoder; :meth:`forward` needs ``numbers`` then.
        names_weight: what it is multiplied with before the contrastive loss is added.
        adversarial: how far each view may be moved against its name, :func:`~.adversarial.moved_against`;
            needs ``names``.
        freeze_batch_norm: use the running statistics of BatchNorm layers, and keep them as they are.
        tile: logits at a time.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    def __init__(
        self,
        clip: CLIP,
        *,
        chunk_size: int | None = None,
        loss: str = "softmax",
        positives: str = "own",
        views: Callable[[Tensor], Tensor] | None = None,
        pixel_values: Callable[[Tensor], Tensor] | None = None,
        cached_images: bool = False,
        names: NameLoss | None = None,
        names_weight: float = 1.0,
        adversarial: float = 0.0,
        freeze_batch_norm: bool = False,
        tile: int = TILE,
    ):
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss: expected one of {', '.join(LOSSES)}, got {loss!r}")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size: expected at least 1 pair, got {chunk_size}")
        self.clip, self.chunk_size, self.positives, self.views, self.tile = clip, chunk_size, positives, views, tile
        self.cached_images, self.freeze_batch_norm = cached_images, freeze_batch_norm
        if adversarial and (names is None or cached_images):
            raise ValueError("adversarial: images are moved against their names, which needs names and the images")
        self.names, self.names_weight, self.adversarial = names, names_weight, adversarial
        self.pixel_values = pixel_values
        self.logit_bias = nn.Parameter(torch.full((1,), INITIAL_BIAS)) if loss == "sigmoid" else None
        self.train(clip.training)

    def forward(
        self,
        images: Tensor,
        input_ids: Tensor,
        groups: Tensor | None = None,
        numbers: Tensor | None = None,
        seed: int = 0,
    ) -> Tensor:
        """The loss of the global batch; every process has it.

        Args:
            images: (n, 3, H, W) of this process, ``pixel_values`` where there are no ``views``; (n, d) where they are
                cached.
            input_ids: int64 (n, L), row i is the caption of image i.
            groups: int (n,); pairs with equal entries, on whatever process, have the same caption
                (:func:`caption_groups`).
            numbers: int64 (n,), which of the ``names`` each image bears.
            seed: of this step's random draws.

        Returns:
            A scalar in nats.

        Raises:
            ValueError: n is no multiple of ``chunk_size``, BatchNorm would not see the global batch, ``names`` come
                without ``numbers``, or ``adversarial`` is asked for under FSDP2.
        """
        self._check(len(images))
        if self.names is not None and numbers is None:
            raise ValueError("a loss over all names needs numbers: which of them each image bears")
        image_embeds = images if self.cached_images else self._image_embeds(images, numbers, seed)
        text_embeds = torch.cat(list(self._embed(self.clip.text_embeds, input_ids, f"text-{seed}")))
        pair, scale = (image_embeds, text_embeds), self.clip.logit_scale
        if self.logit_bias is not None:
            loss = sigmoid_loss(*pair, scale, self.logit_bias, groups, tile=self.tile)
        else:
            loss = tiled_contrastive_loss(*pair, scale, groups, positives=self.positives, tile=self.tile)
        if self.names is None or numbers is None:
            return loss
        with random_state(f"names-{seed}", image_embeds.device):
            return loss + self.names_weight * self.names(self.clip, image_embeds, numbers, seed)

    def train(self, mode: bool = True) -> ContrastiveObjective:
        super().train(mode)
        if self.cached_images:
            self.clip.image_encoder.eval()
        if self.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _image_embeds(self, images: Tensor, numbers: Tensor | None, seed: int) -> Tensor:
        """(n, d), of views of the images, which are moved against their names if that is wanted."""

        def of_views(views: Tensor) -> Tensor:
            return self.clip.image_embeds(self.pixel_values(views) if self.pixel_values else views)

        def views_of(chunk: Tensor) -> Tensor:
            return self.views(chunk) if self.views else chunk

        names, draws = self.names, f"image-{seed}"
        if not self.adversarial or names is None or numbers is None:
            return torch.cat(list(self._embed(lambda chunk: of_views(views_of(chunk)), images, draws)))

        def losses(views: Tensor, numbers: Tensor) -> Tensor:
            return names.losses(self.clip, of_views(views), numbers, seed)

        moved = []  # before the chunks that are checkpointed: no gradient is taken inside of those
        for (place, chunk), (_, chosen) in zip(self._chunks(images), self._chunks(numbers), strict=True):
            with random_state(f"{draws}-{place}", chunk.device):
                moved.append(moved_against(views_of(chunk), partial(losses, numbers=chosen), self.adversarial))
        return torch.cat(list(self._embed(of_views, torch.cat(moved), draws)))

    def _embed(self, encode: Callable[[Tensor], Tensor], inputs: Tensor, seed: str) -> Iterator[Tensor]:
        """Each chunk's embeddings (chunk, d)."""

        def seeded(chunk: Tensor, place: int) -> Tensor:
            with random_state(f"{seed}-{place}", chunk.device):
                return encode(chunk)

        for place, chunk in self._chunks(inputs):
            if len(chunk) == len(inputs) or not torch.is_grad_enabled():
                yield seeded(chunk, place)
            else:  # the random state need not be kept: a chunk sets its own
                yield checkpoint(seeded, chunk, place, use_reentrant=False, preserve_rng_state=False)

    def _chunks(self, inputs: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Each chunk's place in the global batch, and the chunk."""
        size = self.chunk_size or len(inputs)
        return enumerate(inputs.split(size), ProcessGroup().rank * len(inputs) // size)

    def _check(self, count: int) -> None:
        """Refuses what would be another objective."""
        if self.adversarial and isinstance(self, FSDPModule):  # which lets go of its weights after that gradient
            raise ValueError("adversarial: images moved against their names are not supported under FSDP2")
        if self.chunk_size and count % self.chunk_size:
            raise ValueError(f"expected a multiple of chunk_size {self.chunk_size} pairs on every process, got {count}")
        chunks = count // (self.chunk_size or count)
        processes = ProcessGroup().size
        if chunks * processes == 1:
            return
        for name, module in self.named_modules():
            across = isinstance(module, nn.SyncBatchNorm) and chunks == 1
            if isinstance(module, _BatchNorm) and module.training and not across:
                raise ValueError(
                    f"{name}: BatchNorm would normalise each of {chunks} chunks on {processes} processes by itself, "
                    "which is another model than that of the whole batch: use GroupNorm (norm: group), "
                    "freeze_batch_norm, or one process without chunk_size"
                )


@contextlib.contextmanager
def random_state(seed: str, device: torch.device) -> Iterator[None]:
    """Torch's global random state set from ``seed`` for a while, then as it was."""
    number = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=7).digest(), "big")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], device_type=_forked(device)):
        torch.manual_seed(number)
        yield


def _forked(device: torch.device) -> str:
    """The accelerator whose random state is kept aside: fork_rng knows the CPU's by itself."""
    return device.type if device.type != "cpu" else "cuda"


def caption_groups(captions: Sequence[str]) -> Tensor:
    """The same number for the same caption, on every process: int64 (n,), the first 8 bytes of its BLAKE2b digest."""
    digests = [hashlib.blake2b(caption.encode(), digest_size=8).digest() for caption in captions]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests], dtype=torch.long)
