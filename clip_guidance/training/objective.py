"""The contrastive objective over batches larger than memory, on one process or many.

Images and captions go through their towers a chunk at a time. A chunk keeps nothing but its embeddings, the loss is
that of the whole batch on all processes (:mod:`clip_guidance.loss.tiled`), and the backward pass runs each chunk again.
These are the cached gradients of GradCache (Gao et al. 2021, arXiv:2101.06983, section 3.2) by way of gradient
checkpointing (Chen et al. 2016, arXiv:1604.06174). Chunks change memory and time, and nothing else.

Every chunk draws its augmentation and its dropout from a seed of its own, made of the step's seed and the chunk's
position in the global batch. So a chunk that is run again draws the same, and the draws do not depend on how many
processes share the batch.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from clip_guidance.clip import CLIP
from clip_guidance.loss.contrastive import similarity_logits
from clip_guidance.loss.distributed import ProcessGroup
from clip_guidance.loss.sigmoid import INITIAL_BIAS, sigmoid_loss
from clip_guidance.loss.supervised import supervised_contrastive_loss
from clip_guidance.loss.tiled import TILE, tiled_contrastive_loss
from clip_guidance.training.class_name_loss import ClassNameLoss
from clip_guidance.training.distillation import Teachers, distillation_loss
from clip_guidance.training.text_anchor import TextAnchor

LOSSES = ("softmax", "sigmoid")
IMAGE_SCALE = math.log(10)  # of images to each other: the temperature of 0.1 of Khosla et al. 2020, section 4


class ContrastiveObjective(nn.Module):
    """A CLIP and its loss, to be wrapped by DDP or FSDP2 as a whole.

    Gradients of the wrapped module are those of one process with the global batch; no option is needed for that.

    Args:
        clip: What is trained.
        chunk_size: Pairs that go through the towers at a time, which bounds memory; None for all of a process.
        loss: "softmax", CLIP's symmetric cross-entropy, or "sigmoid", SigLIP's, which adds a ``logit_bias``.
        positives: Of "softmax": how pairs of the same caption count for each other, see
            :func:`~clip_guidance.loss.tiled.tiled_contrastive_loss`.
        augment: Applied to images (n, 3, H, W) in [0, 1] first; may draw from torch's global random state, which is
            seeded for each chunk.
        pixel_values: Makes the image tower's ``pixel_values`` of augmented images; draws nothing.
        cached_images: The image tower is locked, and :meth:`forward` takes embeddings (n, d) in place of images, see
            :mod:`clip_guidance.training.frozen_embeds`.
        class_name_loss: A second loss over all names, for a locked text encoder; :meth:`forward` then needs
            ``name_indices``.
        class_name_loss_weight: Factor of the second loss in the sum of both.
        image_positives_weight: Factor of a loss by which images of one group attract each other
            (:func:`~clip_guidance.loss.supervised.supervised_contrastive_loss`); it sees one process alone.
        teachers: CLIPs whose ranking of the batch is learnt; :meth:`forward` then needs ``teacher_texts``.
        distillation_weight: Factor of that loss, which ranks the pairs of each process among themselves.
        text_anchor: A text tower whose states are kept; :meth:`forward` then needs ``anchor_ids``.
        text_anchor_weight: Factor of the loss that keeps them, at the texts of each process.
        freeze_batch_norm: Use the running statistics of BatchNorm layers, and keep them as they are.
        tile: Logits that the loss computes at a time.

    Raises:
        ValueError: An option is unknown or out of range.

    Example:
        >>> clip = CLIP.from_pretrained("emoji")
        >>> objective = ContrastiveObjective(clip, chunk_size=2)
        >>> images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> tokens = clip.tokenizer(["a cat", "a dog", "a bus", "a tree"], padding=True, return_tensors="pt")
        >>> loss = objective(clip.image_processor.differentiable(images), tokens.input_ids)
        >>> loss.backward()
        >>> loss.shape
        torch.Size([])
    """

    def __init__(
        self,
        clip: CLIP,
        *,
        chunk_size: int | None = None,
        loss: str = "softmax",
        positives: str = "own",
        augment: Callable[[Tensor], Tensor] | None = None,
        pixel_values: Callable[[Tensor], Tensor] | None = None,
        cached_images: bool = False,
        class_name_loss: ClassNameLoss | None = None,
        class_name_loss_weight: float = 1.0,
        image_positives_weight: float = 0.0,
        teachers: Teachers | None = None,
        distillation_weight: float = 1.0,
        text_anchor: TextAnchor | None = None,
        text_anchor_weight: float = 1.0,
        freeze_batch_norm: bool = False,
        tile: int = TILE,
    ):
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss: expected one of {', '.join(LOSSES)}, got {loss!r}")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size: expected at least 1 pair, got {chunk_size}")
        self.clip, self.chunk_size, self.positives, self.augment, self.tile = clip, chunk_size, positives, augment, tile
        self.cached_images, self.freeze_batch_norm = cached_images, freeze_batch_norm
        self.class_name_loss, self.class_name_loss_weight = class_name_loss, class_name_loss_weight
        self.pixel_values, self.image_positives_weight = pixel_values, image_positives_weight
        self.teachers, self.distillation_weight = teachers, distillation_weight
        self.text_anchor, self.text_anchor_weight = text_anchor, text_anchor_weight
        self.logit_bias = nn.Parameter(torch.full((1,), INITIAL_BIAS)) if loss == "sigmoid" else None
        self.train(clip.training)

    def forward(
        self,
        images: Tensor,
        input_ids: Tensor,
        groups: Tensor | None = None,
        name_indices: Tensor | None = None,
        teacher_texts: Tensor | None = None,
        anchor_ids: Tensor | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Return the loss of the global batch, the same on every process.

        Args:
            images: (n, 3, H, W) of this process: in [0, 1] for ``augment`` and ``pixel_values``, or ready for the image
                tower without them; (n, d) where they are cached.
            input_ids: int64 (n, L), row i is the caption of image i.
            groups: int (n,); pairs with equal entries, on any process, have the same caption
                (:func:`caption_groups`).
            name_indices: int64 (n,), the name of each image in ``class_name_loss``; ``NAMELESS`` where there is none.
            teacher_texts: (n, D), what ``teachers.text_embeds`` makes of the captions.
            anchor_ids: int64 (m, L), texts whose states are kept, see ``text_anchor.draw``.
            seed: Of this step's random draws.

        Returns:
            A scalar in nats.

        Raises:
            ValueError: n is no multiple of ``chunk_size``, BatchNorm would not see the global batch, or
                ``class_name_loss`` is used without ``name_indices``.
        """
        self._check(len(images))
        if self.class_name_loss is not None and name_indices is None:
            raise ValueError("a loss over all names needs name_indices: the name of each image")
        if self.teachers is not None and teacher_texts is None:
            raise ValueError("distillation needs teacher_texts: the teachers' embeddings of the captions")
        if self.text_anchor is not None and anchor_ids is None:
            raise ValueError("text_anchor needs anchor_ids: the texts whose states are kept")
        if self.image_positives_weight and groups is None:
            raise ValueError("image_positives_weight needs groups: the concept of each image")
        image_embeds = images if self.cached_images else self._image_embeds(images, seed)
        text_embeds = torch.cat(list(self._embed(self.clip.text_embeds, input_ids, f"text-{seed}")))
        pair, scale = (image_embeds, text_embeds), self.clip.logit_scale
        if self.logit_bias is not None:
            loss = sigmoid_loss(*pair, scale, self.logit_bias, groups, tile=self.tile)
        else:
            loss = tiled_contrastive_loss(*pair, scale, groups, positives=self.positives, tile=self.tile)
        if self.class_name_loss is not None and name_indices is not None:
            with random_state(f"names-{seed}", image_embeds.device):
                names = self.class_name_loss(self.clip, image_embeds, name_indices, seed)
            loss = loss + self.class_name_loss_weight * names
        if self.image_positives_weight and groups is not None:
            loss = loss + self.image_positives_weight * self._image_positives(image_embeds, groups)
        if self.teachers is not None and teacher_texts is not None:
            taught = self.teachers.logits(self._views(images, seed, self.teachers.image_embeds), teacher_texts)
            loss = loss + self.distillation_weight * distillation_loss(similarity_logits(*pair, scale), taught)
        if self.text_anchor is not None and anchor_ids is not None:
            loss = loss + self.text_anchor_weight * self.text_anchor(self.clip, anchor_ids)
        return loss

    def train(self, mode: bool = True) -> ContrastiveObjective:
        super().train(mode)
        if self.cached_images:
            self.clip.image_encoder.eval()
        if self.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _image_positives(self, image_embeds: Tensor, groups: Tensor) -> Tensor:
        return supervised_contrastive_loss(image_embeds, groups, image_embeds.new_tensor(IMAGE_SCALE))

    def _image_embeds(self, images: Tensor, seed: int) -> Tensor:
        """Return the embeddings (n, d) of the augmented images."""

        def encode(view: Tensor) -> Tensor:
            return self.clip.image_embeds(self.pixel_values(view) if self.pixel_values else view)

        return self._views(images, seed, encode)

    def _views(self, images: Tensor, seed: int, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what ``encode`` makes of the augmented images; drawn alike for each reader of a step."""

        def augmented(chunk: Tensor) -> Tensor:
            return encode(self.augment(chunk) if self.augment else chunk)

        return torch.cat(list(self._embed(augmented, images, f"image-{seed}")))

    def _embed(self, encode: Callable[[Tensor], Tensor], inputs: Tensor, seed: str) -> Iterator[Tensor]:
        """Yield the embeddings (chunk, d) of each chunk."""

        def seeded(chunk: Tensor, position: int) -> Tensor:
            with random_state(f"{seed}-{position}", chunk.device):
                return encode(chunk)

        for position, chunk in self._chunks(inputs):
            if len(chunk) == len(inputs) or not torch.is_grad_enabled():
                yield seeded(chunk, position)
            else:  # each chunk sets its own random state, so none need be kept
                yield checkpoint(seeded, chunk, position, use_reentrant=False, preserve_rng_state=False)

    def _chunks(self, inputs: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield each chunk with its position in the global batch."""
        size = self.chunk_size or len(inputs)
        return enumerate(inputs.split(size), ProcessGroup().rank * len(inputs) // size)

    def _check(self, count: int) -> None:
        """Refuse a batch or a model for which chunks or processes would change the loss."""
        if self.chunk_size and count % self.chunk_size:
            raise ValueError(f"expected a multiple of chunk_size {self.chunk_size} pairs on every process, got {count}")
        chunks = count // (self.chunk_size or count)
        processes = ProcessGroup().size
        if self.image_positives_weight and processes > 1:
            raise ValueError(f"image_positives_weight: expected one process, which sees all pairs, got {processes}")
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
    """Set torch's global random state from a seed, and restore it at the end of the block."""
    number = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=7).digest(), "big")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], device_type=_forked(device)):
        torch.manual_seed(number)
        yield


def _forked(device: torch.device) -> str:
    """Name the type of accelerator whose random state ``fork_rng`` keeps beside the CPU's."""
    return device.type if device.type != "cpu" else "cuda"


def caption_groups(captions: Sequence[str]) -> Tensor:
    """Give equal captions equal numbers, on every process.

    Returns:
        int64 (n,), the first 8 bytes of the BLAKE2b digest of each caption.
    """
    digests = [hashlib.blake2b(caption.encode(), digest_size=8).digest() for caption in captions]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests], dtype=torch.long)
