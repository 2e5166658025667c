"""Rewards: differentiable functions of the images, one number an image.

:class:`CLIPReward` is CLIP's own logit (Radford et al. 2021, arXiv:2103.00020), exp(logit_scale)·cos(image,
prompt): up to a constant, the log-likelihood that CLIP gives to the prompt. It is averaged over cutouts.
:class:`WeightedRewards` adds several rewards up, which multiplies the tilts of the density.

A reward may have ``parts(images)``, an iterator of rewards (B,) whose sum is the reward: guidance takes the
gradient of one part after the other, so that only one part's activations are in memory.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clip_guidance._tensors import at_least_float32
from clip_guidance.guidance.cutouts import Cutouts, View
from clip_guidance.guidance.engine.gradient import parts, sized_for_half

if TYPE_CHECKING:
    from clip_guidance.clip import CLIP

Prompt = str | Sequence[str] | Mapping[str, float]


class CLIPReward(nn.Module):
    """CLIP's logit between each image and its prompt.

    Args:
        clip: The model; its image tower is differentiated, its text tower runs once, here.
        prompt: One prompt for all images; or n prompts, B images then must be a multiple of n, and each prompt
            serves B/n consecutive images, as diffusers' ``num_images_per_prompt`` lays them out; or several
            prompts with weights for all images, ``{"a red apple": 1.0, "a photo": -0.5}``, whose logits are added.
        cutouts: Views of each image over which the logit is averaged.
        chunk: Number of views that pass through the image tower together; None for all.

    Raises:
        TypeError: ``prompt`` is neither a string nor a sequence of strings, nor are they mapped to numbers.
        ValueError: There is no prompt, or an empty one; or ``chunk`` is below 1.
    """

    text_embeds: Tensor

    def __init__(self, clip: "CLIP", prompt: Prompt, cutouts: Cutouts | None = None, chunk: int | None = None) -> None:
        super().__init__()
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1 view, or None for all, got {chunk}")
        self.clip = clip
        self.cutouts = cutouts or Cutouts()
        self.chunk = chunk
        prompts = _as_prompts(list(prompt) if isinstance(prompt, Mapping) else prompt)
        embeds = clip.encode_text(prompts)
        if isinstance(prompt, Mapping):
            # Σ w·cos(image, text) = cos is linear in the text: one vector, no longer of unit length.
            weights = [_as_weight(weight, f"prompt {text!r}") for text, weight in prompt.items()]
            embeds = embeds.new_tensor(weights)[None] @ embeds
        self.register_buffer("text_embeds", embeds, persistent=False)

    def reset(self) -> None:
        """Start the random crops over, so that equal runs give equal images."""
        self.cutouts.reset()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B,) of images (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: ``images`` are not images, or their number is no multiple of the number of prompts.
        """
        return torch.stack(list(self.parts(images))).sum(0)

    def parts(self, images: Tensor) -> Iterator[Tensor]:
        """The same, (B,) for each chunk of views; their sum is the reward."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"CLIPReward reads images (B, 3, H, W) in [0, 1], got {tuple(images.shape)}; "
                "with space='latent' a reward receives latents"
            )
        images = images.to(self.clip.device)
        text_embeds = self._text_embeds_for(len(images)).to(images.device)
        views = self.cutouts.views()
        chunk = self.chunk or len(views)
        for first in range(0, len(views), chunk):
            image_embeds = self._embed(images, views[first : first + chunk])
            cosines = (image_embeds * text_embeds).sum(-1)  # (views, B)
            yield at_least_float32(self.clip.logit_scale).exp() * cosines.sum(0) / len(views)

    def _embed(self, images: Tensor, views: list[View]) -> Tensor:
        """(views, B, d): one pass of the tower for all of them, whatever their sizes are."""
        pixel_values = torch.cat([self.clip.image_processor.differentiable(view(images)) for view in views])
        image_embeds = sized_for_half(lambda x: self.clip.image_embeds(x.to(self.clip.dtype)), pixel_values)
        return image_embeds.unflatten(0, (len(views), -1))

    def _text_embeds_for(self, batch: int) -> Tensor:
        prompts = len(self.text_embeds)
        if batch % prompts:
            raise ValueError(
                f"{prompts} prompts cannot be shared out evenly among a batch of {batch} images; give one "
                "prompt, or as many as the pipeline is given"
            )
        return self.text_embeds.repeat_interleave(batch // prompts, dim=0)


class WeightedRewards(nn.Module):
    """Σ weight·reward, for example a CLIP's logit and an aesthetic head, or two CLIPs.

    Args:
        rewards: Pairs of a weight and a reward, each reward (B, 3, H, W) -> (B,).

    Raises:
        TypeError: A reward is not callable or a weight no number.
        ValueError: There is none, or a weight is not finite.
    """

    def __init__(self, rewards: Iterable[tuple[float, Callable[[Tensor], Tensor]]]) -> None:
        super().__init__()
        pairs = list(rewards)
        if not pairs:
            raise ValueError("expected at least one (weight, reward), got none")
        self.weights = [_as_weight(weight, f"reward {index}") for index, (weight, _) in enumerate(pairs)]
        for index, (_, reward) in enumerate(pairs):
            if not callable(reward):
                raise TypeError(f"reward {index} must be callable, got {type(reward).__name__}")
        named = {str(index): reward for index, (_, reward) in enumerate(pairs)}
        self.networks = nn.ModuleDict({k: each for k, each in named.items() if isinstance(each, nn.Module)})
        self._functions = {name: each for name, each in named.items() if not isinstance(each, nn.Module)}

    @property
    def rewards(self) -> list[tuple[float, Callable[[Tensor], Tensor]]]:
        """Pairs of a weight and a reward."""
        found: dict[str, Any] = {**self._functions, **dict(self.networks.items())}
        return [(weight, found[str(index)]) for index, weight in enumerate(self.weights)]

    def reset(self) -> None:
        """Start over whatever is random in the rewards."""
        for _, reward in self.rewards:
            getattr(reward, "reset", lambda: None)()

    def forward(self, images: Tensor) -> Tensor:
        """Rewards (B,) of images (B, 3, H, W) in [0, 1]."""
        return torch.stack(list(self.parts(images))).sum(0)

    def parts(self, images: Tensor) -> Iterator[Tensor]:
        """The parts of the rewards, each times its weight."""
        for weight, reward in self.rewards:
            for part in parts(reward, images):
                yield weight * part.to(images.device)


def _as_weight(weight: float, owner: str) -> float:
    if not isinstance(weight, int | float):
        raise TypeError(f"the weight of {owner} is a {type(weight).__name__}; expected a number")
    if not math.isfinite(weight):
        raise ValueError(f"the weight of {owner} must be finite, got {weight}")
    return float(weight)


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
