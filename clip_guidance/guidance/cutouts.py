"""Cutouts of a picture: the whole, and random square crops of it, each seen by CLIP on its own.

Averaging the reward over cutouts blunts adversarial gradients, which do not survive a change of frame
(Crowson's CLIP-guided diffusion, 2021; Liu et al. 2021, "FuseDream", arXiv:2112.01573, on augmented CLIP
scores).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_SMALLEST = 0.5  # of the shorter side; smaller crops of a small picture show CLIP mostly interpolation


class Cutouts:
    """``count`` views of a batch of pictures.

    One draw serves the whole batch, so that a picture is steered in a batch as it is alone, and it comes from
    a generator of its own, so that the sampler's noise stays what it is.

    Args:
        count: Number of views; the first is the whole picture, the others are square crops of half to all of
            the shorter side, mirrored half of the time.
        seed: Seed of the crops.

    Raises:
        ValueError: ``count`` is less than 1.
    """

    def __init__(self, count: int = 1, seed: int = 0) -> None:
        if count < 1:
            raise ValueError(f"cutouts must be at least 1 (the whole picture), got {count}")
        self.count = count
        self.seed = seed
        self._generator = torch.Generator()
        self.reset()

    def reset(self) -> None:
        """Start the draws over, as at the beginning of a run."""
        self._generator.manual_seed(self.seed)

    def __call__(self, images: Tensor) -> Iterator[Tensor]:
        """Views (B, C, h, w) of pictures (B, C, H, W), each of its own size; gradients flow."""
        yield images
        for _ in range(self.count - 1):
            yield self._crop(images)

    def _crop(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        scale, vertical, horizontal, mirror = torch.rand(4, generator=self._generator).tolist()
        size = max(1, round(min(height, width) * (_SMALLEST + (1 - _SMALLEST) * scale)))
        top, left = int(vertical * (height - size + 1)), int(horizontal * (width - size + 1))
        crop = images[..., top : top + size, left : left + size]
        return crop.flip(-1) if mirror < 0.5 else crop
