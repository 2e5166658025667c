"""Regions: targets of a part of the image, and what a list of targets means.

What a region's reward reads follows Blended Diffusion (Avrahami et al. 2022, arXiv:2111.14818, section 3.1): the image
through the mask, on a plain ground; the reward is then an ordinary function of what the mask lets through, and its
gradient is 0 outside. Unlike there, the ground is not mid-grey but the mean colour of the region's own rim, since few
images that a CLIP was trained on end at a grey edge; and the mask's bounding box is cut out and padded to a square with
the same ground, so that CLIP sees the region as large as its input, and whole: CLIP's preprocessing would cut the ends
off an oblong.
"""

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clip_guidance.guidance.checks import as_numbers, as_weight, shown
from clip_guidance.guidance.targets import EXPECTED, Target, Term, as_terms, is_pair, is_plain
from clip_guidance.images.decoders import open_image
from clip_guidance.images.load import load_image

_LEAST = 0.5 / 255  # of a mask, which rounds to one grey level: below it nothing is seen

Box: TypeAlias = tuple[float, float, float, float]
#: One target for all images, or one for each prompt.
Targets: TypeAlias = "Target | Region | Sequence[Any]"
MaskOrBox: TypeAlias = Sequence[float] | Tensor | np.ndarray | Image.Image | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Region:
    """Steer a part of the image towards a target of its own.

    CLIP sees the region cut out at its bounding box, padded to a square, with the mean colour of the mask's rim
    wherever the mask is 0. The gradient of a region is 0 outside its mask. ``cutouts`` of a guidance are then views of
    that square.

    Args:
        target: A text, an image, or several with weights, as for :class:`~clip_guidance.guidance.CLIPGuidance`.
        mask_or_box: Where the target holds. A box is (left, top, right, bottom) as fractions of the image's width and
            height, in [0, 1], so that (0, 0, 0.5, 1) is the left half. A mask is a grey PIL image, its path, or an
            array or a tensor (H, W) of bool, of floats in [0, 1], or of integers from 0 to 255 (or of 0 and 1): 0 where
            the target does not hold. It may have any size of the image's aspect, and soft edges.
        weight: Factor of the region's reward; negative to steer away. Default: 1.

    Raises:
        TypeError: An argument is of another type.
        ValueError: The box is empty or outside of [0, 1]; the mask has another shape, a number outside of [0, 1], or
            is 0 everywhere; or the weight is not finite.
        ImageError: The file of a mask cannot be read.

    Example:
        >>> import clip_guidance as cg
        >>> regions = [cg.Region("a red apple", (0, 0, 0.5, 1)), cg.Region("a rocket", (0.5, 0, 1, 1), weight=0.5)]
        >>> guidance = cg.CLIPGuidance("emoji", regions, scale=10.0)
    """

    target: Target
    mask_or_box: MaskOrBox
    weight: float = 1.0
    _mask: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        as_terms("the target of a region", self.target)
        object.__setattr__(self, "weight", as_weight(self.weight, "a region"))
        box = _as_box(self.mask_or_box)
        object.__setattr__(self, "_mask", None if box else _as_mask(self.mask_or_box))
        if box:
            object.__setattr__(self, "mask_or_box", box)

    def mask(self, height: int, width: int) -> Tensor:
        """Compute the mask of an image, float64 (H, W) in [0, 1]; of a box the share of each pixel that it covers.

        Raises:
            ValueError: The mask has another aspect than the image.
        """
        if self._mask is None:
            left, top, right, bottom = cast(Box, self.mask_or_box)
            return _covered(top, bottom, height)[:, None] * _covered(left, right, width)
        rows, columns = self._mask.shape
        # Sides that were rounded to whole pixels, of either grid, differ by half a pixel each.
        if abs(columns * height - width * rows) > max(height + width, rows + columns) / 2:
            raise ValueError(
                f"the mask of a region is {rows} x {columns}, which is not the aspect of the image, {height} x {width}"
            )
        size = (height, width)
        return F.interpolate(self._mask[None, None], size, mode="bilinear", antialias=True)[0, 0].clamp(0, 1)

    def cut_out(self, images: Tensor) -> Tensor:
        """Cut the region out of images (B, 3, H, W): squares (B, 3, S, S), of one colour outside of the mask.

        Raises:
            ValueError: The mask has another aspect than the images, or is less than a pixel of them.
        """
        height, width = images.shape[-2:]
        mask = self.mask(height, width)
        seen = mask >= _LEAST
        if not seen.any():
            raise ValueError(f"a region covers no pixel of an image of {height} x {width}: {shown(self.mask_or_box)}")
        (top, bottom), (left, right) = (_span(seen.any(dim)) for dim in (1, 0))
        within = (..., slice(top, bottom), slice(left, right))
        mask, images = mask[within].to(images), images[within]
        weights = _rim(mask)
        ground = (images * weights).sum((-2, -1), keepdim=True) / weights.sum()
        masked = (images - ground) * mask
        side = max(masked.shape[-2:])
        above, before = ((side - length) // 2 for length in masked.shape[-2:])
        below, after = side - masked.shape[-2] - above, side - masked.shape[-1] - before
        return F.pad(masked, (before, after, above, below)) + ground


@dataclass(frozen=True, eq=False)
class Part:
    """What a prompt's images, or a region of them, are steered towards.

    Attributes:
        prompt: Index of the prompt.
        region: The region; None for the whole image.
        terms: Texts and images, with weights.
    """

    prompt: int
    region: Region | None
    terms: list[Term]


def is_one(target: Any) -> bool:
    """Return whether a target is one for all images, rather than a list of one for each prompt.

    A list that holds a region or a pair (target, weight) is one target: the sum of its entries.
    """
    if isinstance(target, list | tuple):
        return any(isinstance(entry, Region) or is_pair(entry) for entry in target)
    return is_plain(target) or isinstance(target, Region | Mapping)


def copied(target: Any) -> Any:
    """Copy a target's lists and mappings, so that nobody else changes them; any ordered collection becomes a list."""
    if isinstance(target, Mapping):
        return dict(target)
    if is_plain(target) or not isinstance(target, Iterable) or isinstance(target, bytes | Set):
        return target
    return [copied(entry) for entry in target]


def as_parts(target: Any) -> list[Part]:
    """Divide a target by prompt, and each prompt's into that of the whole image and those of the regions.

    Raises:
        TypeError: The target is of another type.
        ValueError: There is no target, or a text is empty.
    """
    if is_one(target):
        return _parts_of("the target", target, 0)
    if not isinstance(target, list | tuple):
        given = f"{type(target).__name__} {shown(target)}"
        raise TypeError(f"the target must be {EXPECTED}, a Region, or a list of these; got {given}")
    if not target:
        raise ValueError("the target is an empty list; expected at least one text or image")
    return [part for prompt, one in enumerate(target) for part in _parts_of(f"target {prompt}", one, prompt)]


def _parts_of(name: str, target: Any, prompt: int) -> list[Part]:
    entries = target if isinstance(target, list | tuple) and is_one(target) else [target]
    regions = [entry for entry in entries if isinstance(entry, Region)]
    if not regions:
        return [Part(prompt, None, as_terms(name, target))]
    rest = [entry if is_pair(entry) else (entry, 1.0) for entry in entries if not isinstance(entry, Region)]
    parts = [Part(prompt, None, as_terms(name, rest))] if rest else []
    for index, region in enumerate(regions):
        parts.append(Part(prompt, region, as_terms(f"the target of region {index}", region.target, region.weight)))
    return parts


def _as_box(given: Any) -> Box | None:
    """Return a box as four fractions; None where a mask was given."""
    if not isinstance(given, list | tuple) and getattr(given, "ndim", None) != 1:
        return None
    numbers = as_numbers("the box of a region", given)
    if len(numbers) != 4:
        raise ValueError(f"the box of a region must be (left, top, right, bottom), got {shown(given)}")
    left, top, right, bottom = map(float, numbers)
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(
            "the box of a region must be (left, top, right, bottom) in [0, 1] with left < right and top < bottom, got "
            f"{shown(given)}"
        )
    return left, top, right, bottom


def _as_mask(given: Any) -> Tensor:
    if isinstance(given, Image.Image | os.PathLike):
        given = np.array(_as_grey(given))
    if not isinstance(given, np.ndarray | Tensor):
        raise TypeError(
            "mask_or_box must be four fractions, or a mask: a grey PIL image, a pathlib.Path, or an array or tensor "
            f"(H, W); got {type(given).__name__} {shown(given)}"
        )
    values = given.detach().cpu() if isinstance(given, Tensor) else given
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"the mask of a region must have the shape (H, W), got {tuple(values.shape)}")
    mask = torch.as_tensor(values)
    is_level = not mask.is_floating_point() and mask.dtype != torch.bool
    mask = mask.double()
    if is_level and mask.max() > 1:
        mask = mask / 255
    if not (mask.min() >= 0 and mask.max() <= 1):  # NaN fails too
        raise ValueError(
            "the mask of a region must hold floats in [0, 1], integers from 0 to 255, or bools; got "
            f"{float(mask.min()):g} to {float(mask.max()):g} of {values.dtype}"
        )
    if mask.max() < _LEAST:
        raise ValueError(
            f"the mask of a region, {mask.shape[0]} x {mask.shape[1]}, is 0 everywhere: nothing is steered"
        )
    return mask


def _as_grey(source: Image.Image | os.PathLike[str]) -> Image.Image:
    """Read a mask, and refuse one with transparency, which would be read as white."""
    image = load_image(source)
    with open_image(source) if isinstance(source, os.PathLike) else nullcontext(source) as opened:
        is_transparent = opened.has_transparency_data
    if is_transparent:
        raise ValueError(
            "the mask of a region has transparency: pass that alone, image.getchannel('A'), or a grey image"
        )
    return image.convert("L")


def _covered(start: float, end: float, size: int) -> Tensor:
    """Compute the share of each of ``size`` pixels that lies between two fractions of the side."""
    edges = torch.arange(size + 1, dtype=torch.float64)
    return (edges[1:].clamp(max=end * size) - edges[:-1].clamp(min=start * size)).clamp(min=0)


def _rim(mask: Tensor) -> Tensor:
    """Return a mask (H, W) less its smallest value within one pixel: what it holds where it ends, or falls."""
    padded = F.pad(mask[None, None], (1, 1, 1, 1))
    return mask + F.max_pool2d(-padded, 3, stride=1)[0, 0]


def _span(seen: Tensor) -> tuple[int, int]:
    """Return the first index that is true, and the last one plus 1."""
    found = seen.nonzero().flatten().tolist()
    return found[0], found[-1] + 1
