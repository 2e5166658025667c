"""Classification of each image among all names of the data, not only those in its batch.

In a batch of 128 of 2,000 names an image seldom meets a name like its own, and a contrastive loss soon has nothing
more to teach. With the text encoder locked (LiT, Zhai et al. 2022, arXiv:2111.07991) every name is encoded once, and
the image half of the contrastive loss (Radford et al. 2021, figure 3) can have all names as candidates at each step:

    loss = 1/N · Σ_i (logsumexp_k l_ik − l_i,name(i)),   l_ik = t·a_i·b_k

with a_i the embedding of image i and b_k that of name k, through the text projection as it is at that step.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_guidance.clip import CLIP
from clip_guidance.clip.tokenizer import tokenize
from clip_guidance.loss.contrastive import similarity_logits
from clip_guidance.loss.distributed import ProcessGroup
from clip_guidance.zero_shot.templates import TRAINING_TEMPLATES

NAMELESS = -100  # the name of an image that has none and adds 0: cross_entropy's ignore_index


class ClassNameLoss(nn.Module):
    """Cross-entropy of images over all names, which a locked text encoder has read in advance.

    Args:
        clip: Its text encoder is locked; it is used in evaluation mode and left in the mode it was in.
        names: K distinct names.
        batch_size: Texts per pass.
        captions: Those of the names that are whole captions, which are asked as they are; the others are put into each
            of the templates.

    Raises:
        ValueError: A parameter of the text encoder would be trained, or names repeat.
    """

    pooled: Tensor

    def __init__(self, clip: CLIP, names: Sequence[str], batch_size: int = 256, captions: Collection[str] = ()):
        super().__init__()
        if any(parameter.requires_grad for parameter in clip.text_encoder.parameters()):
            raise ValueError("names are read once, which needs a locked text encoder: freeze_text")
        if len(set(names)) != len(names):
            raise ValueError(f"expected distinct names, got {len(names)} of which {len(set(names))} are distinct")
        training = clip.text_encoder.training
        clip.text_encoder.eval()
        whole = set(captions)
        texts = [
            name if name in whole else template.format(name) for template in TRAINING_TEMPLATES for name in names
        ]
        with torch.no_grad():
            parts = [
                clip.text_encoder(tokenize(clip.tokenizer, texts[i : i + batch_size]).to(clip.device)).pooler_output
                for i in range(0, len(texts), batch_size)
            ]
        clip.text_encoder.train(training)
        # each launch computes these anew, so checkpoints need not hold them
        pooled = torch.cat(parts).unflatten(0, (len(TRAINING_TEMPLATES), len(names)))
        self.register_buffer("pooled", pooled, persistent=False)

    def forward(self, clip: CLIP, image_embeds: Tensor, name_indices: Tensor, seed: int = 0) -> Tensor:
        """Return the loss of the global batch.

        Gradients are those of this process, for data parallelism to average.

        Args:
            clip: Its text projection and temperature are used.
            image_embeds: (n, d), of any length.
            name_indices: int64 (n,) in [0, K), the name of each image; ``NAMELESS`` adds 0.
            seed: Chooses the template, the same on all processes.

        Returns:
            A scalar in nats.
        """
        name_embeds = clip.text_projection(self.pooled[seed % len(TRAINING_TEMPLATES)])
        logits = similarity_logits(image_embeds, name_embeds, clip.logit_scale)
        own = F.cross_entropy(logits, name_indices, ignore_index=NAMELESS, reduction="none")
        own = own.mean()  # reduction="mean" would round in another order
        group = ProcessGroup()
        return own + (group.sum(own.detach().clone()) / group.size - own.detach())
