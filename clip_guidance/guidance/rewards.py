"""Weighted sums of rewards, which multiply their tilts of the density.

A reward is a differentiable function of the images, one number per image. It may have ``parts(images)``, an iterator of
rewards (B,) whose sum is the reward: guidance takes the gradient of one part after the other, so that only one part's
activations are in memory.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clip_guidance.guidance.checks import as_weight, shown
from clip_guidance.guidance.engine.gradient import parts
from clip_guidance.guidance.reading import Reading, readings


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
        found = [as_weight(weight, f"reward {index}") for index, weight in enumerate(weights)]
        if len(found) != len(getattr(self, "_weights", found)):
            raise ValueError(f"expected {len(self._weights)} weights, one for each reward, got {len(found)}")
        self._weights = found

    @property
    def rewards(self) -> list[tuple[float, Callable[[Tensor], Tensor]]]:
        """Return the pairs of a weight and a reward."""
        found: dict[str, Any] = {**self._functions, **dict(self.networks.items())}
        return [(weight, found[str(index)]) for index, weight in enumerate(self.weights)]

    @property
    def has_regions(self) -> bool:
        """Whether one of the rewards belongs to a part of the image, so that it must be given whole images."""
        return any(getattr(reward, "has_regions", False) for _, reward in self.rewards)

    def readings(self) -> list[Reading] | None:
        """Return how each reward reads images; None where that is not known of all of them."""
        found = [readings(reward) for _, reward in self.rewards]
        return None if None in found else [reading for each in found for reading in each or []]

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
