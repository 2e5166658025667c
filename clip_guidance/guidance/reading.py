"""What the networks of a reward read of an image: how large, in which views, and what they make of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clip_guidance.rewards import PromptReward


@dataclass(frozen=True)
class Reading:
    """Hold how one network of a reward reads images.

    Attributes:
        network: The network, whose weights decide what it makes of an image.
        resized: From the height and the width of an image to those to which it is resized for the network.
        embed: From images (B, 3, H, W) in [0, 1] to unit vectors (B, d).
        smallest: Side of the smallest view that is cut out of the image, as a share of the shorter side; 1 where the
            network reads the whole image alone.
    """

    network: nn.Module
    resized: Callable[[int, int], tuple[int, int]]
    embed: Callable[[Tensor], Tensor]
    smallest: float = 1.0

    def shares(self, height: int, width: int) -> list[float]:
        """Return to which share of its sides an image may shrink before the whole, and the smallest view, lose size."""
        side = self._side(height, width)
        views = [(height, width)] if self.smallest == 1 else [(height, width), (side, side)]
        return [max(to / side for to, side in zip(self.resized(*view), view, strict=True)) for view in views]

    def embeds(self, image: Tensor) -> Tensor:
        """Embed an image (1, 3, H, W) and, where there are cutouts, the smallest view of its middle, (1 or 2, d)."""
        height, width = image.shape[-2:]
        side = self._side(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        middle = image[..., top : top + side, left : left + side]
        return torch.cat([self.embed(view) for view in ((image,) if self.smallest == 1 else (image, middle))])

    def _side(self, height: int, width: int) -> int:
        return max(1, round(min(height, width) * self.smallest))


def readings(reward: Any) -> list[Reading] | None:
    """Return how each network of a reward reads images; None where that is not known of all of them."""
    if (own := getattr(reward, "readings", None)) is not None:
        return own()
    if isinstance(reward, PromptReward) and reward.embed_dim is not None:
        return [Reading(reward, reward.image_processor.resized, lambda images: _look(reward, images))]
    return None


def _look(reward: PromptReward, images: Tensor) -> Tensor:
    return reward.look(reward.image_processor.differentiable(images.to(reward.device)))
