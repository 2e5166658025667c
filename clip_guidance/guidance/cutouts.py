"""Cutouts of an image: the whole, and random square crops of it, each seen by CLIP on its own.

Averaging the reward over cutouts blunts adversarial gradients, which do not survive a change of frame, colour or
noise (Crowson's CLIP-guided diffusion, 2021; Liu et al. 2021, "FuseDream", arXiv:2112.01573, on augmented CLIP
scores; Shen et al. 2024, "Understanding and Improving Training-free Loss-based Diffusion Guidance", Table 4).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

View = Callable[[Tensor], Tensor]


@dataclass
class Cutouts:
    """``count`` views of a batch of images: the whole image, and ``count - 1`` random square crops.

    The crops of a step are stratified, as a Latin hypercube (McKay et al. 1979): their sizes and positions are
    random, but spread over the whole range, and half of them are mirrored. One draw serves the whole batch, so that
    an image is steered in a batch as it is alone, and it comes from a generator of its own, so that the sampler's
    noise stays what it is.

    Args:
        count: Number of views, at least 1.
        seed: Seed of everything random here; each run starts from it.
        smallest: Side of the smallest crop, as a share of the image's shorter side, in (0, 1].
        flip: Whether half of the crops are mirrored left to right.
        jitter: Brightness, contrast and saturation of each crop are changed by up to this share, in [0, 1).
        noise: Standard deviation of Gaussian noise added to each crop, at least 0; pixels are in [0, 1].

    Raises:
        ValueError: An argument is out of range.
    """

    count: int = 1
    seed: int = 0
    smallest: float = 0.5
    flip: bool = True
    jitter: float = 0.0
    noise: float = 0.0
    _generator: torch.Generator = field(default_factory=torch.Generator, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"cutouts must be at least 1 (the whole image), got {self.count}")
        if not 0 < self.smallest <= 1:
            raise ValueError(f"smallest must be in (0, 1], got {self.smallest}")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter must be in [0, 1), got {self.jitter}")
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise must be finite and at least 0, got {self.noise}")
        self.reset()

    def reset(self) -> None:
        """Start the draws over, as at the beginning of a run."""
        self._generator.manual_seed(self.seed)

    def __call__(self, images: Tensor) -> Iterator[Tensor]:
        """The views of images (B, 3, H, W), each (B, 3, h, w)."""
        return (view(images) for view in self.views())

    def views(self) -> list[View]:
        """The views of one step: functions of images (B, 3, H, W) in [0, 1] to (B, 3, h, w); gradients flow.

        Everything is drawn here, so that the views may be called in any order, and a view more than once.
        """
        crops = self._stratified(self.count - 1)
        return [lambda images: images, *(self._crop(row) for row in crops)]

    def _stratified(self, count: int) -> Tensor:
        """(count, 7) numbers in [0, 1), one in each of ``count`` equal strata of every column."""
        columns = [torch.randperm(count, generator=self._generator) for _ in range(7)]
        return (torch.stack(columns, 1) + torch.rand(count, 7, generator=self._generator)) / max(count, 1)

    def _crop(self, row: Tensor) -> View:
        scale, vertical, horizontal, mirror, *colours = row.tolist()
        brightness, contrast, saturation = (1 + self.jitter * (2 * u - 1) for u in colours)
        noise_seed = int(torch.randint(2**31, (1,), generator=self._generator))

        def view(images: Tensor) -> Tensor:
            height, width = images.shape[-2:]
            size = max(1, round(min(height, width) * (self.smallest + (1 - self.smallest) * scale)))
            top, left = int(vertical * (height - size + 1)), int(horizontal * (width - size + 1))
            crop = images[..., top : top + size, left : left + size]
            crop = crop.flip(-1) if self.flip and mirror < 0.5 else crop
            if self.jitter:
                crop = _coloured(crop, brightness, contrast, saturation)
            if self.noise:
                generator = torch.Generator().manual_seed(noise_seed)
                crop = crop + self.noise * torch.randn(crop.shape[1:], generator=generator).to(crop)
            return crop

        return view


def _coloured(images: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """The order and the meaning of the factors are torchvision's; values are not clipped, gradients would die."""
    images = images * brightness
    grey = (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(-3, keepdim=True)
    images = grey.mean((-3, -2, -1), keepdim=True).lerp(images, contrast)
    grey = (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(-3, keepdim=True)
    return grey.lerp(images, saturation)
