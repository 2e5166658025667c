"""Rewards: differentiable functions of the images, one number per image.

:class:`CLIPReward` is CLIP's own logit (Radford et al. 2021, arXiv:2103.00020), exp(logit_scale)·cos(image,
prompt): up to a constant, the log-likelihood that CLIP gives to the prompt, averaged over cutouts.
:class:`WeightedRewards` adds up several rewards, which multiplies their tilts of the density.

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
    """Compute CLIP's logit, exp(logit_scale)·cos(image, prompt), of each image and its prompt.

    Args:
        clip: The model. Its image tower is differentiated; its text tower runs once, at construction.
        prompt: One prompt for all images; or n prompts, each for B/n consecutive images of the B images, as
            diffusers' ``num_images_per_prompt`` orders them; or several prompts with weights for all images,
            ``{"a red apple": 1.0, "a photo": -0.5}``, whose weighted logits are added.
        cutouts: Views of each image over which the logit is averaged; None for the whole image alone.
        chunk: Number of views that pass through the image tower together; None for all. Fewer views take less memory
            and give the same gradient up to rounding.

    Raises:
        TypeError: ``prompt`` is neither a string, nor a sequence of strings, nor a mapping of strings to numbers.
        ValueError: There is no prompt, or an empty one; a weight is not finite; or ``chunk`` is below 1.

    Example:
        >>> import torch
        >>> import clip_guidance as cg
        >>> from clip_guidance.guidance import CLIPReward
        >>> reward = CLIPReward(cg.CLIP.from_pretrained("emoji"), "a red apple", cg.Cutouts(4))
        >>> images = torch.rand(2, 3, 64, 64, requires_grad=True)
        >>> rewards = reward(images)
        >>> rewards.shape
        torch.Size([2])
        >>> rewards.sum().backward()
        >>> images.grad.shape
        torch.Size([2, 3, 64, 64])
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
            # The cosine is linear in the text's unit vector, so that one vector, of another length, serves for all.
            weights = [_as_weight(weight, f"prompt {text!r}") for text, weight in prompt.items()]
            embeds = embeds.new_tensor(weights)[None] @ embeds
        self.register_buffer("text_embeds", embeds, persistent=False)

    def reset(self) -> None:
        """Restart the random crops, so that equal runs give equal images."""
        self.cutouts.reset()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (B,) of images (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: ``images`` have another shape, or their number is not a multiple of the number of prompts.
        """
        return torch.stack(list(self.parts(images))).sum(0)

    def parts(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the reward in parts, (B,) for each chunk of views, whose sum is the reward."""
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
        """Embed all views in one pass of the tower, whatever their sizes are, as (views, B, d)."""
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
    """Add up weighted rewards, Σ weight·reward, such as the logits of two CLIPs.

    Args:
        rewards: Pairs of a weight and a reward. A weight is any finite number; a negative one steers away. A reward
            maps images (B, 3, H, W) in [0, 1] to (B,).

    Raises:
        TypeError: A reward is not callable, or a weight is not a number.
        ValueError: There is no pair, or a weight is not finite.

    Example:
        >>> import torch
        >>> import clip_guidance as cg
        >>> def brightness(images):
        ...     return images.mean((1, 2, 3))
        >>> def contrast(images):
        ...     return images.amax((1, 2, 3)) - images.amin((1, 2, 3))
        >>> reward = cg.WeightedRewards([(1.0, brightness), (-0.5, contrast)])
        >>> reward(torch.ones(2, 3, 8, 8))
        tensor([1., 1.])
        >>> guidance = cg.Guidance(reward, scale=10.0)
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
        """Return the pairs of a weight and a reward."""
        found: dict[str, Any] = {**self._functions, **dict(self.networks.items())}
        return [(weight, found[str(index)]) for index, weight in enumerate(self.weights)]

    def reset(self) -> None:
        """Restart the random choices of all rewards."""
        for _, reward in self.rewards:
            getattr(reward, "reset", lambda: None)()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the weighted sum (B,) of the rewards of images (B, 3, H, W) in [0, 1]."""
        return torch.stack(list(self.parts(images))).sum(0)

    def parts(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the parts of the rewards, each times its weight."""
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
