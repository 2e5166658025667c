"""Rewards of one's own in any of three forms, adapted to the two uses that rewards have.

    (a)  images (B, 3, H, W) in [0, 1]  ->  (B,)             steers, if it is differentiable; chooses and judges
    (b)  an object with ``score(images, prompts)``, of       steers by :func:`as_steering`; chooses and judges
         the same images and one prompt for each
    (c)  list of B PIL images  ->  B numbers                 chooses and judges

:func:`as_judge` takes all of them, :func:`as_steering` the first two. A function may be of form (a) or (c), and is
asked in both ways until one works: with PIL images first, since a function of tensors cannot do anything with them,
where a preprocessor of PIL images may take a tensor for an image of another range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from clip_guidance.images.load import as_list, load_image
from clip_guidance.rewards.base import PromptReward, RewardError, as_prompts, shared_out


class Scorer(Protocol):
    """Rate images against prompts; form (b)."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rate images (B, 3, H, W) in [0, 1] against as many prompts; returns (B,)."""


Reward: TypeAlias = Callable[[Any], Any] | Scorer


def reward_name(reward: Any) -> str:
    """Return what to call a reward in a message: its name, or its class."""
    reward = getattr(reward, "func", reward)  # of functools.partial
    name = getattr(reward, "name", None) or getattr(reward, "__name__", None)
    return name[:60] if isinstance(name, str) else type(reward).__name__


def one_per_image(ratings: Any, count: int, name: str) -> Tensor:
    """Return ratings as a tensor (B,), whatever held them.

    Args:
        ratings: A tensor or array with one element per image, (B,) or (B, 1), or a list of numbers.
        count: Number B of the images.
        name: Name of the reward, for the message.

    Raises:
        RewardError: They are something else.
    """
    try:
        found = ratings if isinstance(ratings, Tensor) else torch.tensor(np.array(list(ratings), np.float64))
    except (TypeError, ValueError):
        raise RewardError(f"{name} must return one number per image, got {type(ratings).__name__}") from None
    if found.numel() != count or found.squeeze().ndim > 1:
        raise RewardError(f"{name} must return one number per image, shape ({count},), got {tuple(found.shape)}")
    return found.reshape(count)


def as_steering(reward: Reward, prompts: str | Sequence[str] | None = None) -> Callable[[Tensor], Tensor]:
    """Make a reward one that ``Guidance`` takes: of images (B, 3, H, W) in [0, 1] alone, to (B,).

    Args:
        reward: A differentiable function of such images, which is returned as it is, or an object with
            ``score(images, prompts)``.
        prompts: What such an object rates against: one text for all images, or n for B/n consecutive images each.

    Raises:
        TypeError: ``reward`` is neither.
        ValueError: An object with ``score`` alone is given without prompts.

    Example:
        >>> import torch
        >>> import clip_guidance as cg
        >>> from clip_guidance.rewards import as_steering
        >>> class Length:
        ...     def score(self, images, prompts):
        ...         lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
        ...         return lengths * images.mean((1, 2, 3))
        >>> steering = as_steering(Length(), ["a cat", "a dog in the sun"])
        >>> steering(torch.ones(4, 3, 8, 8))
        tensor([ 5.,  5., 16., 16.])
        >>> guidance = cg.Guidance(steering, scale=10.0)
    """
    if not _has_score(reward):
        return _checked(reward)
    if prompts is not None:
        return _Steering(reward, as_prompts(prompts))
    if callable(reward):
        return reward
    raise ValueError(f"{reward_name(reward)}.score rates images against prompts: as_steering(reward, prompts)")


class _Steering(nn.Module):
    """Hold a reward of form (b) with its prompts; as a module, so that its weights are found."""

    def __init__(self, reward: Any, prompts: list[str]) -> None:
        super().__init__()
        self.reward, self.prompts, self.name = reward, prompts, reward_name(reward)

    def forward(self, images: Tensor) -> Tensor:
        prompts = shared_out(self.prompts, len(images), self.name)
        return one_per_image(self.reward.score(images, prompts), len(images), self.name)


def as_judge(reward: Reward, prompts: str | Sequence[str] | None = None) -> ImageJudge:
    """Make a reward of any form one that rates any images, without gradients.

    Args:
        reward: A function of images (B, 3, H, W) in [0, 1], an object with ``score(images, prompts)``, or a function of
            a list of PIL images, to one number per image. A ``PromptReward`` that has prompts keeps them.
        prompts: What an object with ``score`` rates against: one text for all images, or n for B/n consecutive images
            each; the other forms do not read them.

    Returns:
        A callable of images, as for ``CLIP.encode_image``, to float32 (B,) on the CPU.

    Raises:
        TypeError: ``reward`` is of none of these forms.
        ValueError: An object that rates against prompts is given without any.

    Example:
        >>> from PIL import Image
        >>> from clip_guidance.rewards import as_judge
        >>> def redness(images):
        ...     return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))
        >>> def width(images):
        ...     return [image.width for image in images]
        >>> photos = [Image.new("RGB", (8, 8), "red"), Image.new("RGB", (6, 8), "blue")]
        >>> as_judge(redness)(photos), as_judge(width)(photos)
        (tensor([ 1.0000, -0.5000]), tensor([8., 6.]))
    """
    return ImageJudge(reward, prompts)


class ImageJudge:
    """Rate any images by a reward of any form; :func:`as_judge` makes it and describes the arguments.

    Attributes:
        name: Name of the reward.
    """

    def __init__(self, reward: Reward, prompts: str | Sequence[str] | None = None) -> None:
        if not _has_score(reward):
            _checked(reward)
        elif prompts is None and _lacks_prompts(reward):
            raise ValueError(f"{reward_name(reward)}.score rates images against prompts: as_judge(reward, prompts)")
        self.name = reward_name(reward)
        self.reward, self.prompts = reward, None if prompts is None else as_prompts(prompts)
        self._reads_tensors = isinstance(reward, nn.Module)  # else found out

    def __call__(self, images: Any) -> Tensor:
        """Rate images, as for ``CLIP.encode_image``; returns float32 (B,).

        Raises:
            RewardError: The reward does not return one finite number per image.
            ImageError: An image cannot be read.
        """
        ratings = self.ratings(images)
        if (bad := (~ratings.isfinite()).nonzero().flatten()).numel():
            where, value = int(bad[0]), ratings[bad[0]].item()
            raise RewardError(f"{self.name} must return finite numbers, got {value} for image {where}")
        return ratings

    @torch.no_grad()
    def ratings(self, images: Any) -> Tensor:
        """Rate images as a call does, but leave numbers in that are not finite."""
        images = images if isinstance(images, Tensor) and images.ndim == 4 else as_list(images)
        return one_per_image(self._rate(images), len(images), self.name).detach().float().cpu()

    def _rate(self, images: Tensor | list[Any]) -> Any:
        function: Any = self.reward
        if isinstance(self.reward, PromptReward):
            return self.reward.score(images, self.reward.prompts or self.prompts)
        if _has_score(self.reward) and self.prompts is not None:
            prompts = shared_out(self.prompts, len(images), self.name)
            return self._of_tensors(lambda x, first: function.score(x, prompts[first : first + len(x)]), images)
        if self._reads_tensors:
            return self._of_tensors(lambda x, _: function(x), images)
        pil_images = [load_image(image) for image in images]
        try:
            return function(pil_images)
        except (TypeError, AttributeError) as error:
            try:
                found = self._of_tensors(lambda x, _: function(x), images)
            except Exception as second:
                what = f"{type(error).__name__}: {error!s:.80}; and of tensors: {type(second).__name__}: {second!s:.80}"
                raise RewardError(f"{self.name} failed of PIL images: {what}") from error
            self._reads_tensors = True
            return found

    def _of_tensors(self, rate: Callable[[Tensor, int], Any], images: Tensor | list[Any]) -> Any:
        """Rate tensors, each with the place of its first image; images of several sizes are rated one by one."""
        if not isinstance(images, Tensor):
            pixels = [_as_tensor(image) for image in images]
            if len({each.shape for each in pixels}) > 1:
                rated = (one_per_image(rate(x[None], place), 1, self.name) for place, x in enumerate(pixels))
                return torch.cat(list(rated))
            images = torch.stack(pixels)
        parameters = getattr(self.reward, "parameters", None)
        first = next(iter(parameters()), None) if callable(parameters) else None
        return rate(images if first is None else images.to(first.device), 0)


def readable_prompts(prompt: Any) -> list[str] | None:
    """Return a pipeline's prompts as a reward can read them; None where one is empty, or they are embeddings.

    Args:
        prompt: What a pipeline was given as its ``prompt``: a text, a list of texts, or None.

    Example:
        >>> from clip_guidance.rewards.protocol import readable_prompts
        >>> readable_prompts("an apple"), readable_prompts(["an apple", ""]), readable_prompts(None)
        (['an apple'], None, None)
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list | tuple) or not prompts:
        return None
    return list(prompts) if all(isinstance(each, str) and each.strip() for each in prompts) else None


def _has_score(reward: Any) -> bool:
    """Return whether a reward has a method ``score``; a network may have a layer of that name."""
    score = getattr(reward, "score", None)
    return callable(score) and not isinstance(score, nn.Module) and not isinstance(reward, type)


def _lacks_prompts(reward: Any) -> bool:
    """Return whether a reward with a method ``score`` can do nothing without prompts from elsewhere."""
    if isinstance(reward, PromptReward):
        return reward.needs_prompt and reward.prompts is None
    return not callable(reward)


def _checked(reward: Any) -> Callable[[Any], Any]:
    if not callable(reward) or isinstance(reward, type):
        what = "a function of images to one number per image, or an object with score(images, prompts)"
        raise TypeError(f"expected a reward, {what}; got {type(reward).__name__} {reward!r:.60}")
    return reward


def _as_tensor(image: Any) -> Tensor:
    """Return an image of any source as a tensor (3, H, W) in [0, 1]; a tensor of such values is left as it is."""
    if isinstance(image, Tensor) and image.is_floating_point() and image.ndim == 3 and len(image) == 3:
        return image
    pixels: Image.Image = load_image(image)
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1) / 255
