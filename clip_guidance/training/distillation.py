"""Distillation: a CLIP learns how several others rank the pairs of a batch.

With l the logits of a batch of n images and n captions, and l⁽ᵏ⁾ those of teacher k of the same views and texts,

    loss = ½ · Σ over both directions of KL( mean_k softmax l⁽ᵏ⁾  ‖  softmax l ), averaged over the n rows or columns.

The mean of the teachers' probabilities knows more than one of them (Hinton et al. 2015, arXiv:1503.02531; for CLIP's
matrix Wu et al. 2023, TinyCLIP, arXiv:2309.12314, equation 3). The teacher sees the very view that the student sees
(Beyer et al. 2022, arXiv:2106.05237).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_guidance.clip.dual_encoder import DualEncoder


class Teachers:
    """CLIPs that are only listened to; no module, so that neither checkpoints nor averages hold their weights.

    Args:
        clips: At least one; each reads texts and images in its own way.
        device: Where they compute.

    Raises:
        ValueError: There is none.
    """

    def __init__(self, clips: Sequence[DualEncoder], device: torch.device | str = "cpu"):
        if not clips:
            raise ValueError("expected at least one teacher, got none")
        self.clips = [clip.to(device).eval().requires_grad_(False) for clip in clips]

    def __deepcopy__(self, memo: dict[int, object]) -> Teachers:
        """Return the same teachers: an average of the student's weights has no need of copies."""
        return self

    @torch.no_grad()
    def text_embeds(self, captions: Sequence[str]) -> Tensor:
        """Return the embeddings of n texts by all teachers, side by side: (n, d₁ + d₂ + ...)."""
        return torch.cat([clip.encode_text(captions) for clip in self.clips], 1)

    @torch.no_grad()
    def image_embeds(self, images: Tensor) -> Tensor:
        """Return the embeddings of images (n, 3, H, W) in [0, 1] by all teachers, side by side."""
        return torch.cat([clip.image_embeds(clip.image_processor.differentiable(images)) for clip in self.clips], 1)

    def logits(self, image_embeds: Tensor, text_embeds: Tensor) -> list[Tensor]:
        """Return each teacher's logits (n, m) of n images and m texts, from the embeddings side by side."""
        widths = [clip.projection_dim for clip in self.clips]
        pairs = zip(self.clips, image_embeds.split(widths, 1), text_embeds.split(widths, 1), strict=True)
        return [clip.logits(images @ texts.T) for clip, images, texts in pairs]


def distillation_loss(logits: Tensor, teacher_logits: Sequence[Tensor]) -> Tensor:
    """Compute the mean of both directions' divergences from the teachers' mean probabilities.

    Args:
        logits: (n, n) of the student, images by texts.
        teacher_logits: The same of each teacher.

    Returns:
        A scalar in nats, at least 0.

    Example:
        >>> distillation_loss(torch.eye(3), [torch.eye(3)])
        tensor(0.)
    """
    total = logits.new_zeros(())
    for axis in (0, 1):
        wanted = torch.stack([each.softmax(axis) for each in teacher_logits]).mean(0)
        total = total + F.kl_div(logits.log_softmax(axis), wanted, reduction="sum") / logits.shape[1 - axis]
    return total / 2
