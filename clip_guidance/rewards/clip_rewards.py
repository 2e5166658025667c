"""Rewards that read a CLIP's embeddings: PickScore, HPSv2.1 and the aesthetic predictors.

    PickScore    exp(logit_scale) · cos(image, prompt)     Kirstain et al. 2023, arXiv:2305.01569, section 3
    HPSv2.1      cos(image, prompt)                        Wu et al. 2023, arXiv:2306.09341, section 4
    aesthetic    w · e + b of the image's unit vector e    https://github.com/LAION-AI/aesthetic-predictor

The first two are CLIPs that were trained further on people's choices between images for a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clip_guidance.clip import DualEncoder
from clip_guidance.rewards.base import PromptReward, RewardError


class PreferenceReward(PromptReward):
    """Rate images against prompts by a CLIP that was trained on people's preferences.

    Args:
        name: Name of the reward.
        clip: The CLIP. Its image tower is differentiated; its text tower reads the reward's own prompts once.
        prompts: As for :class:`~clip_guidance.rewards.base.PromptReward`.
        scaled: Whether the cosine is multiplied by exp(logit_scale), as PickScore does and HPSv2.1 does not.
    """

    def __init__(
        self, name: str, clip: DualEncoder, prompts: str | Sequence[str] | None = None, scaled: bool = True
    ) -> None:
        super().__init__(name, prompts)
        self.clip, self.scaled = clip, scaled
        own = list(dict.fromkeys(self.prompts or []))
        self._own_embeds = dict(zip(own, clip.encode_text(own), strict=True)) if own else {}

    def rate(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._own_embeds]
        known = self._own_embeds | (dict(zip(new, self.clip.encode_text(new), strict=True)) if new else {})
        image_embeds = _image_embeds(self.clip, images)
        cosines = (image_embeds * torch.stack([known[prompt] for prompt in prompts]).to(image_embeds)).sum(-1)
        return self.clip.logits(cosines) if self.scaled else cosines


class AestheticReward(PromptReward):
    """Rate images by an affine head on a CLIP's image embeddings; no prompt is read.

    Args:
        clip: The CLIP that the head was fitted to.
        weight: The head's vector (d,).
        bias: The head's offset, scalar.

    Raises:
        RewardError: The head is of another width than the CLIP's embeddings.
    """

    needs_prompt = False
    weight: Tensor
    bias: Tensor

    def __init__(self, clip: DualEncoder, weight: Tensor, bias: Tensor) -> None:
        super().__init__("aesthetic")
        if len(weight) != clip.projection_dim:
            raise RewardError(
                f"aesthetic: the head reads embeddings of width {len(weight)}, those of "
                f"{clip.name_or_path or 'this CLIP'} have {clip.projection_dim}: take the CLIP it was fitted to"
            )
        self.clip = clip
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())

    def rate(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        image_embeds = _image_embeds(self.clip, images)
        return image_embeds @ self.weight.to(image_embeds) + self.bias.to(image_embeds)


def _image_embeds(clip: DualEncoder, images: Tensor) -> Tensor:
    """Embed images (B, 3, H, W) in [0, 1] as unit vectors (B, d), differentiably."""
    return clip.image_embeds(clip.image_processor.differentiable(images.to(clip.device)).to(clip.dtype))
