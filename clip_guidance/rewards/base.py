"""What the rewards of other projects have in common: they rate images against prompts, and steer with their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from clip_guidance.clip.hub import ModelError
from clip_guidance.clip.image_processor import ImageProcessor
from clip_guidance.clip.tokenizer import check_texts
from clip_guidance.images.load import as_list, load_images


class RewardError(ModelError):
    """A reward cannot be built or followed; the message says what was expected."""


class PromptReward(nn.Module, ABC):
    """Rate images against prompts: as a judge by :meth:`score`, and with prompts of its own as a reward that steers.

    A rating is made in two steps, so that a judge looks at an image once: :meth:`look` encodes preprocessed images, and
    :meth:`judge` turns what was seen and the prompts into numbers.

    Args:
        name: Name of the reward, as ``load_reward`` knows it.
        prompts: What :meth:`forward` rates images against: one prompt for all images, or n prompts, each for B/n
            consecutive images of a batch of B, as diffusers' ``num_images_per_prompt`` orders them. None where the
            reward only judges.

    Attributes:
        image_processor: Preprocessing of the images.
        tokenizer: Of the prompts; None where none is read.
        context_length: Number of tokens that a prompt is cut to; None where none is read.
        embed_dim: Length of the vector that :meth:`look` makes of an image; None where that is no vector.
        name_or_path: Repository, folder or file that it was loaded from; empty where it was made in memory.
        revision: Commit of the repository; None where it is not known.

    Raises:
        TypeError: ``prompts`` is neither a text nor a list or tuple.
        ValueError: There is no prompt, or one is empty or no text.
    """

    needs_prompt = True  # whether a rating depends on the prompt
    image_processor: ImageProcessor
    tokenizer: PreTrainedTokenizerBase | None = None
    context_length: int | None = None
    embed_dim: int | None = None
    name_or_path = ""
    revision: str | None = None

    def __init__(self, name: str, prompts: str | Sequence[str] | None = None) -> None:
        super().__init__()
        self.name = name
        self.prompts = None if prompts is None else as_prompts(prompts)

    @abstractmethod
    def look(self, pixel_values: Tensor) -> Tensor:
        """Encode preprocessed images (B, 3, S, S), differentiably, as what a rating depends on, (B, ...) in float32."""

    @abstractmethod
    def judge(self, seen: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rate what :meth:`look` saw of B images against as many prompts, differentiably; returns (B,)."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Compute 16 hexadecimal digits of all that a rating depends on: weights, vocabulary and preprocessing."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the towers' weights."""
        return next(self.parameters()).dtype

    def with_prompts(self, prompts: str | Sequence[str]) -> PromptReward:
        """Return the same reward, of the same weights, with other prompts of its own."""
        other = copy(self)
        other.prompts = as_prompts(prompts)
        return other

    def in_precision(self, dtype: torch.dtype) -> PromptReward:
        """Convert the towers in place; heads and what follows the towers stay in float32."""
        for module in self.children():
            module.to(dtype)
        return self

    def mean(self, scores: Tensor) -> float:
        """Average the scores (n,) of many images in float64."""
        return scores.double().mean().item()

    def record(self) -> dict[str, Any]:
        """Return all that is needed to compute the same ratings again, ``definition`` first."""
        return {
            "definition": self.name,
            "model": self.name_or_path,
            **({"revision": self.revision} if self.revision else {}),
            "fingerprint": self.fingerprint(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "preprocessing": self.image_processor.record(),
            "context_length": self.context_length,
        }

    def score(self, images: Any, prompts: str | Sequence[str] | None = None, batch_size: int = 64) -> Tensor:
        """Rate images against prompts.

        Args:
            images: Tensor (B, 3, H, W) of values in [0, 1], or (B, 1, H, W) of grey ones, whose rating is
                differentiable; or B images as for ``CLIP.encode_image``: PIL images, paths, bytes or arrays.
            prompts: One for all images, or n for B/n consecutive images each; not read where the reward needs none.
            batch_size: Images of a list that are encoded at once; it changes speed and memory, not the ratings.

        Returns:
            Tensor (B,), at least float32.

        Raises:
            ValueError: The images have another shape, or cannot be shared out among the prompts.
            ImageError: An image cannot be read.
        """
        seen = self._seen(images) if isinstance(images, Tensor) else torch.cat(list(self._seen_of(images, batch_size)))
        if not self.needs_prompt:
            return self.judge(seen, ())
        if prompts is None:
            raise ValueError(f"{self.name} rates images against prompts, got none")
        return self.judge(seen, shared_out(as_prompts(prompts), len(seen), self.name))

    def forward(self, images: Tensor) -> Tensor:
        """Rate images (B, 3, H, W) in [0, 1] against the reward's own prompts; returns (B,).

        Raises:
            ValueError: The reward was loaded without a prompt; otherwise as for :meth:`score`.
        """
        if self.needs_prompt and self.prompts is None:
            raise ValueError(f"{self.name} was loaded without a prompt: load_reward({self.name!r}, prompt) steers")
        return self.score(images, self.prompts)

    def _seen(self, images: Tensor) -> Tensor:
        if images.ndim == 4 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)  # grey
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            found = f"{tuple(images.shape)} of {images.dtype}"
            raise ValueError(f"{self.name} reads images (B, 3, H, W) in [0, 1], got {found}")
        return self.look(self.image_processor.differentiable(images.to(self.device)))

    @torch.no_grad()
    def _seen_of(self, images: Any, batch_size: int) -> Iterator[Tensor]:
        for batch in load_images(as_list(images), batch_size):
            yield self.look(torch.stack([self.image_processor(image) for image in batch.images]).to(self.device))


def as_prompts(prompts: str | Sequence[str]) -> list[str]:
    """Return one prompt, or several, as a list.

    Raises:
        TypeError: They are neither a text nor a list or tuple.
        ValueError: There is none, or one is empty or no text.
    """
    if not isinstance(prompts, str | list | tuple):
        raise TypeError(f"prompt: expected a text or a list of texts, got {type(prompts).__name__}")
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    check_texts(texts)
    return texts


def shared_out(prompts: Sequence[str], count: int, name: str) -> list[str]:
    """Return a prompt for each of ``count`` images: of n prompts each is for ``count``/n consecutive images.

    Raises:
        ValueError: The images cannot be shared out among the prompts; the message begins with ``name``.
    """
    if count % len(prompts):
        raise ValueError(f"{name}: {len(prompts)} prompts cannot be shared out among {count} images")
    return [prompt for prompt in prompts for _ in range(count // len(prompts))]
