"""Rewards that read a CLIP's embeddings: PickScore, HPSv2.1 and the aesthetic predictors.

    PickScore    exp(logit_scale) · cos(image, prompt)     Kirstain et al. 2023, arXiv:2305.01569, section 3
    HPSv2.1      cos(image, prompt)                        Wu et al. 2023, arXiv:2306.09341, section 4
    aesthetic    w · e + b of the image's unit vector e    https://github.com/LAION-AI/aesthetic-predictor

The first two are CLIPs that were trained further on people's choices between images for a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from clip_guidance._tensors import sized_for_half
from clip_guidance.clip import DualEncoder
from clip_guidance.clip.fingerprint import digest
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
        self.image_processor, self.embed_dim = clip.image_processor, clip.projection_dim
        self.tokenizer = clip.tokenizer
        self.context_length = getattr(clip.tokenizer, "model_max_length", None)
        self._own_embeds = self._embeds(self.prompts or [])

    def with_prompts(self, prompts: str | Sequence[str]) -> PreferenceReward:
        other = cast(PreferenceReward, super().with_prompts(prompts))
        other._own_embeds = other._embeds(other.prompts or [])
        return other

    def _embeds(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        texts = list(dict.fromkeys(prompts))
        return dict(zip(texts, self.clip.encode_text(texts), strict=True)) if texts else {}

    def look(self, pixel_values: Tensor) -> Tensor:
        return _image_embeds(self.clip, pixel_values)

    def judge(self, seen: Tensor, prompts: Sequence[str]) -> Tensor:
        known = self._own_embeds | self._embeds([prompt for prompt in prompts if prompt not in self._own_embeds])
        cosines = (seen * torch.stack([known[prompt] for prompt in prompts]).to(seen)).sum(-1)
        return self.clip.logits(cosines) if self.scaled else cosines

    def fingerprint(self) -> str:
        return self.clip.fingerprint()


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
        self.image_processor, self.embed_dim = clip.image_processor, clip.projection_dim
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())

    def look(self, pixel_values: Tensor) -> Tensor:
        return _image_embeds(self.clip, pixel_values)

    def judge(self, seen: Tensor, prompts: Sequence[str]) -> Tensor:
        return seen @ self.weight.to(seen) + self.bias.to(seen)

    def fingerprint(self) -> str:
        return digest(self.clip.fingerprint(), {"weight": self.weight, "bias": self.bias})


def _image_embeds(clip: DualEncoder, pixel_values: Tensor) -> Tensor:
    """Embed preprocessed images (B, 3, S, S) as unit vectors (B, d), with gradients of a size that float16 holds."""
    return sized_for_half(lambda x: clip.image_embeds(x.to(clip.dtype)), pixel_values)
