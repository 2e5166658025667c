"""What the rewards of other projects have in common: they rate images against prompts, and steer with their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from clip_guidance.clip.hub import ModelError
from clip_guidance.clip.tokenizer import check_texts


class RewardError(ModelError):
    """A reward cannot be built from what was found; the message says what was expected."""


class PromptReward(nn.Module, ABC):
    """Rate images against prompts: as a judge by :meth:`score`, and with prompts of its own as a reward that steers.

    Args:
        name: Name of the reward, as ``load_reward`` knows it.
        prompts: What :meth:`forward` rates images against: one prompt for all images, or n prompts, each for B/n
            consecutive images of a batch of B, as diffusers' ``num_images_per_prompt`` orders them. None where the
            reward only judges.

    Raises:
        TypeError: ``prompts`` is neither a text nor a list or tuple.
        ValueError: There is no prompt, or one is empty or no text.
    """

    needs_prompt = True  # whether a rating depends on the prompt

    def __init__(self, name: str, prompts: str | Sequence[str] | None = None) -> None:
        super().__init__()
        self.name = name
        self.prompts = None if prompts is None else _checked(prompts)

    @abstractmethod
    def rate(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rate images (B, 3, H, W) in [0, 1] against as many prompts, differentiably in the images; returns (B,)."""

    def score(self, images: Tensor, prompts: str | Sequence[str]) -> Tensor:
        """Rate images against prompts.

        Args:
            images: Tensor (B, 3, H, W) of values in [0, 1].
            prompts: One for all images, or n for B/n consecutive images each; not read where the reward needs none.

        Returns:
            Tensor (B,), at least float32, differentiable in the images.

        Raises:
            ValueError: The images have another shape, or cannot be shared out among the prompts.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"{self.name} reads images (B, 3, H, W) in [0, 1], got {tuple(images.shape)}")
        if not self.needs_prompt:
            return self.rate(images, ())
        prompts = _checked(prompts)
        if len(images) % len(prompts):
            raise ValueError(f"{self.name}: {len(prompts)} prompts cannot be shared out among {len(images)} images")
        each = len(images) // len(prompts)
        return self.rate(images, [prompt for prompt in prompts for _ in range(each)])

    def forward(self, images: Tensor) -> Tensor:
        """Rate images (B, 3, H, W) in [0, 1] against the reward's own prompts; returns (B,).

        Raises:
            ValueError: The reward was loaded without a prompt; otherwise as for :meth:`score`.
        """
        if self.needs_prompt and self.prompts is None:
            raise ValueError(f"{self.name} was loaded without a prompt: load_reward({self.name!r}, prompt) steers")
        return self.score(images, self.prompts or ())


def _checked(prompts: str | Sequence[str]) -> list[str]:
    if not isinstance(prompts, str | list | tuple):
        raise TypeError(f"prompt: expected a text or a list of texts, got {type(prompts).__name__}")
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    check_texts(texts)
    return texts
