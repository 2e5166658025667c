"""Each image among all names of the data, not only among those that its batch happens to hold.

In a batch of 128 of 2,000 names an image seldom meets a name like its own, and a contrastive loss soon has nothing
more to teach. With the text encoder locked (LiT, Zhai et al. 2022, arXiv:2111.07991) every name is read once, and the
image half of the contrastive loss (Radford et al. 2021, figure 3) can have them all as candidates at each step:

    loss = 1/N · Σ_i (logsumexp_k l_ik − l_i,name(i)),   l_ik = t·a_i·b_k

with a_i the embedding of image i and b_k that of name k, through the text projection as it is at that step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_guidance.clip import CLIP
from clip_guidance.clip.tokenizer import tokenize
from clip_guidance.loss.contrastive import similarity_logits
from clip_guidance.loss.distributed import ProcessGroup
from clip_guidance.zero_shot.templates import TEMPLATES


class NameLoss(nn.Module):
    """Cross-entropy of images over names whose texts a locked text encoder has read.

    Args:
        clip: whose text encoder is locked; it is used in evaluation mode and left in the mode it is in.
        names: K distinct names.
        batch_size: texts a pass.

    Raises:
        ValueError: a parameter of the text encoder would be trained, or names repeat.
    """

    pooled: Tensor

    def __init__(self, clip: CLIP, names: Sequence[str], batch_size: int = 256):
        super().__init__()
        if any(parameter.requires_grad for parameter in clip.text_encoder.parameters()):
            raise ValueError("names are read once, which needs a locked text encoder: freeze_text")
        if len(set(names)) != len(names):
            raise ValueError(f"expected distinct names, got {len(names)} of which {len(set(names))} are distinct")
        training = clip.text_encoder.training
        clip.text_encoder.eval()
        texts = [template.format(name) for template in TEMPLATES for name in names]
        with torch.no_grad():
            parts = [
                clip.text_encoder(tokenize(clip.tokenizer, texts[i : i + batch_size]).to(clip.device)).pooler_output
                for i in range(0, len(texts), batch_size)
            ]
        clip.text_encoder.train(training)
        # made anew by each launch, so checkpoints go without
        self.register_buffer("pooled", torch.cat(parts).unflatten(0, (len(TEMPLATES), len(names))), persistent=False)

    def forward(self, clip: CLIP, image_embeds: Tensor, numbers: Tensor, seed: int = 0) -> Tensor:
        """The loss of the global batch; gradients are this process's, for data parallelism to average.

        Args:
            clip: whose text projection and temperature are used.
            image_embeds: (n, d), need not be unit vectors.
            numbers: int64 (n,) in [0, K), which name each image bears.
            seed: chooses the template, the same on all processes.

        Returns:
            A scalar in nats.
        """
        own = self.losses(clip, image_embeds, numbers, seed).mean()
        group = ProcessGroup()
        return own + (group.sum(own.detach().clone()) / group.size - own.detach())

    def losses(self, clip: CLIP, image_embeds: Tensor, numbers: Tensor, seed: int = 0) -> Tensor:
        """Each image's own, (n,), of what :meth:`forward` is given."""
        name_embeds = clip.text_projection(self.pooled[seed % len(TEMPLATES)])
        logits = similarity_logits(image_embeds, name_embeds, clip.logit_scale)
        return F.cross_entropy(logits, numbers, reduction="none")
