"""Rewards: differentiable functions of the pictures, one number a picture.

:class:`CLIPReward` is CLIP's own logit (Radford et al. 2021, arXiv:2103.00020), exp(logit_scale)·cos(image,
prompt): up to a constant, the log-likelihood that CLIP gives to the prompt. It is averaged over cutouts.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clip_guidance.guidance.cutouts import Cutouts

if TYPE_CHECKING:
    from clip_guidance.clip import CLIP


class CLIPReward(nn.Module):
    """CLIP's logit between each picture and its prompt.

    Args:
        clip: The model; its image tower is differentiated, its text tower runs once, here.
        prompt: One prompt for all pictures, or n prompts; B pictures then must be a multiple of n, and each
            prompt serves B/n consecutive pictures, as diffusers' ``num_images_per_prompt`` lays them out.
        cutouts: Views of each picture over which the logit is averaged.

    Raises:
        TypeError: ``prompt`` is neither a string nor a sequence of strings.
        ValueError: There is no prompt, or an empty one.
    """

    text_embeds: Tensor

    def __init__(self, clip: "CLIP", prompt: str | Sequence[str], cutouts: Cutouts | None = None) -> None:
        super().__init__()
        self.clip = clip
        self.cutouts = cutouts or Cutouts()
        self.register_buffer("text_embeds", clip.encode_text(_as_prompts(prompt)), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B,) of pictures (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: ``images`` are not pictures, or their number is no multiple of the number of prompts.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"CLIPReward reads pictures (B, 3, H, W) in [0, 1], got {tuple(images.shape)}; "
                "with space='latent' a reward receives latents"
            )
        images = images.to(self.clip.device)
        text_embeds = self._text_embeds_for(len(images)).to(images.device)
        cosines = [(self._embed(view) * text_embeds).sum(-1) for view in self.cutouts(images)]
        return self.clip.logit_scale.exp() * torch.stack(cosines).mean(0)

    def _embed(self, images: Tensor) -> Tensor:
        pixel_values = self.clip.image_processor.differentiable(images)
        return self.clip.image_embeds(pixel_values.to(self.clip.dtype))

    def _text_embeds_for(self, batch: int) -> Tensor:
        prompts = len(self.text_embeds)
        if batch % prompts:
            raise ValueError(
                f"{prompts} prompts cannot be shared out evenly among a batch of {batch} pictures; give one "
                "prompt, or as many as the pipeline is given"
            )
        return self.text_embeds.repeat_interleave(batch // prompts, dim=0)


def _as_prompts(prompt: str | Sequence[str]) -> list[str]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("the prompt is an empty list; expected at least one text")
    for index, text in enumerate(prompts):
        if not isinstance(text, str):
            raise TypeError(f"prompt {index} is a {type(text).__name__}; expected a string")
        if not text.strip():
            raise ValueError(f"prompt {index} is empty; there is nothing to steer towards")
    return prompts
