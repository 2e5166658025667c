"""Rewards: differentiable functions of the images, one number per image.

:class:`CLIPReward` is CLIP's own logit (Radford et al. 2021, arXiv:2103.00020), exp(logit_scale)·cos(image,
prompt): up to a constant, the log-likelihood that CLIP gives to the prompt, averaged over cutouts. A CLIP with a
``logit_bias``, such as SigLIP, adds it: its logit is that of the probability that image and prompt belong together.
:class:`WeightedRewards` adds up several rewards, which multiplies their tilts of the density.

A reward may have ``parts(images)``, an iterator of rewards (B,) whose sum is the reward: guidance takes the
gradient of one part after the other, so that only one part's activations are in memory.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from copy import copy
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from clip_guidance._tensors import at_least_float32
from clip_guidance.clip import DualEncoder, as_clip
from clip_guidance.guidance.checks import as_number, as_whole, is_number, shown
from clip_guidance.guidance.cutouts import Cutouts, View
from clip_guidance.guidance.engine.gradient import parts, sized_for_half
from clip_guidance.images.find import EXTENSIONS

_NO_IMAGES = (
    " An image cannot be a target yet: describe it in words, or give Guidance a reward that compares images with it"
)
Prompt = str | Sequence[str] | Mapping[str, float]


class CLIPReward(nn.Module):
    """Compute CLIP's logit, exp(logit_scale)·cos(image, prompt) + logit_bias, of each image and its prompt.

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
    _prompt: Prompt

    def __init__(
        self, clip: DualEncoder, prompt: Prompt, cutouts: Cutouts | None = None, chunk: int | None = None
    ) -> None:
        super().__init__()
        clip = as_clip(clip)
        clip.image_processor.differentiable(torch.zeros(1, 3, 8, 8))  # some cannot: say so now, not amid a run
        self.cutouts = Cutouts() if cutouts is None else cutouts
        self.chunk = chunk
        self.clip = clip
        self.register_buffer("text_embeds", self._embeds(prompt), persistent=False)

    @property
    def prompt(self) -> Prompt:
        """The prompt, or a copy of several; another one that is set is encoded at once."""
        return self._prompt if isinstance(self._prompt, str) else copy(self._prompt)

    @prompt.setter
    def prompt(self, prompt: Prompt) -> None:
        self._buffers["text_embeds"] = self._embeds(prompt).to(self.text_embeds.device)

    @property
    def cutouts(self) -> Cutouts:
        """Views of each image over which the logit is averaged."""
        return self._cutouts

    @cutouts.setter
    def cutouts(self, cutouts: Cutouts) -> None:
        if not isinstance(cutouts, Cutouts):
            raise TypeError(f"cutouts must be Cutouts, got {type(cutouts).__name__} {shown(cutouts)}")
        self._cutouts = cutouts

    @property
    def chunk(self) -> int | None:
        """Number of views that pass through the image tower together; None for all."""
        return self._chunk

    @chunk.setter
    def chunk(self, chunk: int | None) -> None:
        self._chunk = None if chunk is None else as_whole("chunk", chunk, "at least 1 view, or None for all", 1)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, but for the CLIP and what it made of the prompt.

        Raises:
            AttributeError: ``name`` is one of these, which belong together.
        """
        if name in ("clip", "text_embeds") and "text_embeds" in self._buffers:
            raise AttributeError(f"{name} cannot be set, since it goes with the prompt: make another CLIPReward")
        super().__setattr__(name, value)

    def _embeds(self, prompt: Prompt) -> Tensor:
        """Encode the prompt, and keep it, if it is one."""
        texts = _as_prompts(prompt)
        if not isinstance(prompt, Mapping):
            embeds = self.clip.encode_text(texts)
            self._prompt, self._total_weight = prompt if isinstance(prompt, str) else texts, 1.0
            return embeds
        weights = [_as_weight(weight, f"prompt {shown(text)}") for text, weight in prompt.items()]
        embeds = self.clip.encode_text(texts)
        self._prompt, self._total_weight = dict(prompt), sum(weights)
        # The cosine is linear in the text's unit vector, so that one vector, of another length, serves for all.
        return embeds.new_tensor(weights)[None] @ embeds

    def reset(self) -> None:
        """Restart the random crops, so that equal runs give equal images."""
        self.cutouts.reset()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (B,) of images (B, 3, H, W) in [0, 1], or (B, 1, H, W) of grey ones.

        Raises:
            ValueError: ``images`` have another shape, or their number is not a multiple of the number of prompts.
        """
        return torch.stack(list(self.parts(images))).sum(0)

    def parts(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the reward in parts, (B,) for each chunk of views, whose sum is the reward."""
        if images.ndim == 4 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)  # grey
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
            reward = at_least_float32(self.clip.logit_scale).exp() * cosines.sum(0) / len(views)
            bias = self.clip.logit_bias  # each view has its own, and so has each of several weighted prompts
            yield reward if bias is None else reward + self._total_weight * bias * len(cosines) / len(views)

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

    _weights: list[float]

    def __init__(self, rewards: Iterable[tuple[float, Callable[[Tensor], Tensor]]]) -> None:
        super().__init__()
        pairs = list(rewards) if isinstance(rewards, Iterable) else [None]
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            raise TypeError(f"expected pairs (weight, reward), got {type(rewards).__name__} {shown(rewards)}")
        if not pairs:
            raise ValueError("expected at least one (weight, reward), got none")
        self.weights = [weight for weight, _ in pairs]
        for index, (_, reward) in enumerate(pairs):
            if not callable(reward):
                raise TypeError(f"reward {index} must be callable, got {type(reward).__name__}")
        named = {str(index): reward for index, (_, reward) in enumerate(pairs)}
        self.networks = nn.ModuleDict({k: each for k, each in named.items() if isinstance(each, nn.Module)})
        self._functions = {name: each for name, each in named.items() if not isinstance(each, nn.Module)}

    @property
    def weights(self) -> list[float]:
        """A copy of the weights; as many others may be set."""
        return list(self._weights)

    @weights.setter
    def weights(self, weights: Sequence[float]) -> None:
        found = [_as_weight(weight, f"reward {index}") for index, weight in enumerate(weights)]
        if len(found) != len(getattr(self, "_weights", found)):
            raise ValueError(f"expected {len(self._weights)} weights, one for each reward, got {len(found)}")
        self._weights = found

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
    if not is_number(weight):
        raise TypeError(f"the weight of {owner} is a {type(weight).__name__}; expected a number")
    number = as_number(f"the weight of {owner}", weight)
    if not math.isfinite(number):
        raise ValueError(f"the weight of {owner} must be finite, got {shown(number)}")
    return float(number)


def _as_prompts(prompt: Prompt) -> list[str]:
    if not isinstance(prompt, Iterable) or isinstance(prompt, bytes | Set):
        raise TypeError(
            f"the prompt must be a text, several, or texts with weights, got {type(prompt).__name__} "
            f"{shown(prompt)}.{_NO_IMAGES if isinstance(prompt, PurePath | Tensor) else ''}"
        )
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("the prompt is an empty list; expected at least one text")
    for index, text in enumerate(prompts):
        if not isinstance(text, str):
            advice = " Weights are one mapping of texts for all images" if isinstance(text, Mapping) else ""
            advice = _NO_IMAGES if isinstance(text, PurePath | Tensor) else advice
            raise TypeError(f"prompt {index} is a {type(text).__name__}; expected a string.{advice}")
        if not text.strip():
            raise ValueError(f"prompt {index} is empty; there is nothing to steer towards")
        if PurePath(text.strip()).suffix.lower() in EXTENSIONS or _is_path_of_file(text):
            warnings.warn(
                f"prompt {index}, {shown(text)}, looks like an image's path, and is read as a text.{_NO_IMAGES}",
                stacklevel=5,
            )
    return prompts


def _is_path_of_file(text: str) -> bool:
    return os.sep in text and os.path.isfile(text)
