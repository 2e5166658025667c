"""Cutouts of an image: the whole and random square crops, which CLIP sees separately.

Averaging the reward over cutouts blunts adversarial gradients, which do not survive a change of frame, colour or
noise (Crowson's CLIP-guided diffusion, 2021; Liu et al. 2021, "FuseDream", arXiv:2112.01573, on augmented CLIP
scores; Shen et al. 2024, "Understanding and Improving Training-free Loss-based Diffusion Guidance", Table 4).
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from clip_guidance.guidance.checks import Checked, as_number, as_whole, shown

View = Callable[[Tensor], Tensor]


@dataclass
class Cutouts(Checked):
    """Draw ``count`` views of images: the whole image, and ``count - 1`` random square crops.

    The crops of a step are stratified, as a Latin hypercube (McKay et al. 1979): their sizes and positions are
    random, but spread over the whole range, and half of the crops are mirrored. All images of a batch share one draw,
    so that an image is steered in a batch as it is alone. The draw comes from a separate generator, so that the
    sampler's noise does not change.

    Args:
        count: Number of views, at least 1; 1, the default, is the whole image alone. More views blunt adversarial
            gradients, and each takes one more pass through CLIP.
        seed: Seed of all random choices; each run starts from it.
        smallest: Side of the smallest crop, as a share of the image's shorter side, in (0, 1]; at 1 every crop is as
            large as the image allows.
        flip: Whether half of the crops are mirrored left to right; turn it off for text and other one-sided things.
        jitter: Largest relative change of each crop's brightness, contrast and saturation, in [0, 1); 0 for none.
        noise: Standard deviation of Gaussian noise added to each crop, at least 0; pixels are in [0, 1].

    Raises:
        TypeError: An argument is of another type.
        ValueError: An argument is out of range.

    Example:
        >>> import torch
        >>> import clip_guidance as cg
        >>> cutouts = cg.Cutouts(count=4, smallest=0.5)
        >>> views = list(cutouts(torch.rand(2, 3, 64, 64)))
        >>> len(views), views[0].shape
        (4, torch.Size([2, 3, 64, 64]))
        >>> all(32 <= view.shape[-1] <= 64 for view in views)
        True
    """

    count: int = 1
    seed: int = 0
    smallest: float = 0.5
    flip: bool = True
    jitter: float = 0.0
    noise: float = 0.0
    #: By thread, so that runs at once in several threads do not draw from one another's.
    _generators: WeakKeyDictionary = field(default_factory=WeakKeyDictionary, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check()
        self.reset()
        self._is_checked = True

    def _check(self) -> None:
        count = as_whole("cutouts", self.count, "at least 1 (the whole image)", 1)
        seed = as_whole("seed", self.seed, "a whole number of at most 64 bits", -(2**63))
        if seed >= 2**64:
            raise ValueError(f"seed must be a whole number of at most 64 bits, got {shown(seed)}")
        smallest, jitter, noise = (as_number(name, getattr(self, name)) for name in ("smallest", "jitter", "noise"))
        if not 0 < smallest <= 1:
            raise ValueError(f"smallest must be in (0, 1], got {shown(smallest)}")
        if not isinstance(self.flip, bool):
            raise TypeError(f"flip must be True or False, got {type(self.flip).__name__} {shown(self.flip)}")
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter must be in [0, 1), got {shown(jitter)}")
        if not 0 <= noise < float("inf"):
            raise ValueError(f"noise must be finite and at least 0, got {shown(noise)}")
        vars(self).update(count=count, seed=seed, smallest=smallest, jitter=jitter, noise=float(noise))

    def reset(self) -> None:
        """Start the draws over, as at the beginning of a run."""
        self._generators[threading.current_thread()] = torch.Generator().manual_seed(self.seed)

    @property
    def _generator(self) -> torch.Generator:
        if threading.current_thread() not in self._generators:
            self.reset()
        return self._generators[threading.current_thread()]

    def __call__(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the views of images (B, 3, H, W), each (B, 3, h, w)."""
        return (view(images) for view in self.views())

    def views(self) -> list[View]:
        """Draw the views of one step.

        All random choices are made here, so that the views may be called in any order, and a view more than once.

        Returns:
            Differentiable functions from images (B, 3, H, W) in [0, 1] to (B, 3, h, w).
        """
        crops = self._stratified(self.count - 1)
        return [lambda images: images, *(self._crop(row) for row in crops)]

    def _stratified(self, count: int) -> Tensor:
        """Draw (count, 7) numbers in [0, 1), one in each of ``count`` equal strata of every column."""
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
    """Change brightness, contrast and saturation by torchvision's factors, in its order.

    Values are not clipped, because a clipped value has no gradient.
    """
    images = images * brightness
    grey = (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(-3, keepdim=True)
    images = grey.mean((-3, -2, -1), keepdim=True).lerp(images, contrast)
    grey = (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(-3, keepdim=True)
    return grey.lerp(images, saturation)
