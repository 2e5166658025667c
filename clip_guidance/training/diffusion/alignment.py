"""Draw a denoiser's middle layer near what an image tower sees in the clean image.

REPA (Yu et al. 2025, arXiv:2410.06940): a small network, which nobody needs after training, maps the states h of the
middle block at noisy latents to the tower's states y of the clean image, place by place, and

    loss = error of the velocity + weight · mean over images and places of (1 − cos(network(h), y)).

So the denoiser is told what tells images apart, which it would else find out from the error alone, of which most is
detail. Late in training the term holds the denoiser back (Wang et al. 2025, arXiv:2505.16792): it ends before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from clip_guidance.clip import CLIP, ModelError
from clip_guidance.data.dataset import CaptionedImages


class AlignedOutput(NamedTuple):
    """What an :class:`AlignedUNet` returns; a named tuple, since launchers take it apart and build it anew.

    Attributes:
        sample: The velocity (B, C, h, w).
        states: What the middle block says of the tower's states, (B, L, d).
    """

    sample: Tensor
    states: Tensor


class AlignedUNet(nn.Module):
    """A UNet whose middle block also says what the clean image's states are.

    Args:
        unet: The UNet, which stays as it is; the states have its middle block's places.
        width: d, of the states.
    """

    def __init__(self, unet: UNet2DConditionModel, width: int):
        super().__init__()
        channels, self.unet = unet.config.block_out_channels[-1], unet
        self.network = nn.Sequential(nn.Linear(channels, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.middle: Tensor | None = None
        unet.mid_block.register_forward_hook(self._remember)  # a bound method, so that a copy hears its own block

    def _remember(self, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.middle = output

    def forward(self, x: Tensor, timesteps: Tensor, text: Tensor) -> AlignedOutput:
        """Predict the velocity and the clean images' states, of noisy latents (B, C, h, w) at their times, int64 (B,).

        Args:
            x: The latents.
            timesteps: The times.
            text: What the text encoder makes of their captions (B, T, D).
        """
        sample = self.unet(x, timesteps, text).sample
        assert self.middle is not None
        middle, self.middle = self.middle, None  # no graph is kept until the next call
        return AlignedOutput(sample=sample, states=self.network(middle.flatten(2).transpose(1, 2)))


def middle_side(unet: UNet2DConditionModel) -> int:
    """Return the places along a side of the middle block, of latents of the side that the UNet was made for."""
    side: int = unet.config.sample_size // 2 ** (len(unet.config.block_out_channels) - 1)
    return side


class CleanStates:
    """The states of an image tower at clean images, read once.

    They are standardised by channel over all images: what all images have in common aligns nothing.

    Args:
        clip: The CLIP whose image tower reads.
        data: The images.
        side: Places along each side of the states; a finer tower's are averaged.
        random_flip: Read the mirrored images too.

    Raises:
        ModelError: The tower has no states in a square.
    """

    def __init__(self, clip: CLIP, data: CaptionedImages, side: int, random_flip: bool = False):
        self.upright = _read(clip, data.images, side)
        mean, deviation = self.upright.mean((0, 1)), self.upright.std((0, 1)).clamp(min=1e-6)
        self.mirrored = (_read(clip, data.images.flip(-1), side) - mean) / deviation if random_flip else None
        self.upright = (self.upright - mean) / deviation

    @property
    def width(self) -> int:
        """Channels of a state."""
        return self.upright.shape[-1]

    def __call__(self, indices: Tensor, mirrored: Tensor) -> Tensor:
        """Return the states (B, L, d) of some images, mirrored where ``mirrored``, bool (B,), is true."""
        states = self.upright[indices]
        return states if self.mirrored is None else torch.where(mirrored[:, None, None], self.mirrored[indices], states)


@dataclass(frozen=True)
class Alignment:
    """The term of the loss, and how long it lasts.

    Attributes:
        states: What the tower sees in the images.
        strength: Its weight while it lasts.
        steps: How many steps it lasts.
    """

    states: CleanStates
    strength: float
    steps: int

    def weight(self, step: int) -> float:
        """Return the weight in a step, 0 where the term has ended."""
        return self.strength if step < self.steps else 0.0

    def __call__(self, found: Tensor, indices: Tensor, mirrored: Tensor) -> Tensor:
        """Return 1 − cos of states (B, L, d) to those of the images, the mean over images and places."""
        wanted = self.states(indices, mirrored).to(found.device)
        return (1 - F.cosine_similarity(found.float(), wanted, dim=-1)).mean()


@torch.no_grad()
def _read(clip: CLIP, images: Tensor, side: int) -> Tensor:
    found = []
    for part in images.split(256):
        pixels = clip.image_processor.differentiable(part.to(clip.device).float() / 255)
        states = clip.image_encoder(pixels.to(clip.dtype)).last_hidden_state.float().cpu()
        count = states.shape[1]
        if math.isqrt(count) ** 2 != count:
            states, count = states[:, 1:], count - 1  # a class token stands in front of the places
        grid = math.isqrt(count)
        if not count or grid**2 != count:
            raise ModelError(f"--alignment: expected an image tower with states in a square, got {states.shape[1]}")
        square = states.transpose(1, 2).unflatten(2, (grid, grid))
        found.append(F.adaptive_avg_pool2d(square, side).flatten(2).transpose(1, 2))
    return torch.cat(found)
