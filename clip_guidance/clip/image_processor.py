"""Turn an image into what an image tower reads: resize, crop the centre, normalise.

There are two forms of one map. ``__call__`` on PIL images equals the image processors of ``transformers``, such as
``CLIPImageProcessorPil``, and those of open_clip. Of an image
more than eight times as long as wide it resizes only what the crop keeps, on the same grid, so that its memory depends
on the output and not on the ratio: of 10⁶ pixels by one, 16 GB would be made of which 200 kB are kept.
:meth:`ImageProcessor.differentiable` on tensors lets gradients through, and equals it up to PIL's rounding to 8 bits
(both resize bicubically, a = -1/2, with an antialiasing filter).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil

from clip_guidance._files import read_json
from clip_guidance.clip.preprocessor_config import read_steps

MOST_PIXELS = 10_000  # on a side; no image tower reads more, and each image costs three numbers per pixel
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers of the filters
_SUPPORT = 2  # pixels on either side that a filter reads, of the coarser of the two grids; of bilinear it is 1
_SLENDER = 8  # ratio of the sides from which only the part that the crop keeps is resized


@dataclass(frozen=True)
class ImageProcessor:
    """Preprocess images for a CLIP.

    Args:
        image_size: Side S of the square output, in pixels.
        image_mean: Mean of each of the three channels, for values in [0, 1]; subtracted.
        image_std: Standard deviation of each of the three channels; divided by.
        resize_to: Length of the shorter side before the crop, in pixels, or the height and the width to which an image
            is stretched; 0 for a shorter side of ``image_size``.
        resample: PIL's number of the filter: 3 for bicubic, 2 for bilinear.
        pad: Whether the longer side is resized to ``image_size``, and the shorter padded on both sides, so that nothing
            is cut off; ``resize_to`` is ``image_size`` then.
        round_crop: Whether half a pixel of the crop's corner is rounded to the nearest even number, as torchvision and
            so open_clip does, or down, as ``transformers`` does.
        fill: Grey level of the padding, from 0 (black) to 255.

    Raises:
        ValueError: A size is no whole number of at least 1, the crop is larger than what it is cut from, a mean or
            deviation is not three finite numbers (the deviation above 0), ``fill`` is no grey level, or ``resample`` is
            neither 2 nor 3.

    Example:
        >>> import torch
        >>> from PIL import Image
        >>> from clip_guidance.clip.image_processor import ImageProcessor
        >>> processor = ImageProcessor(32)
        >>> pixels = processor(Image.new("RGB", (80, 40), "white"))
        >>> pixels.shape, pixels.max()
        (torch.Size([3, 32, 32]), tensor(1.))
        >>> processor.differentiable(torch.ones(1, 3, 40, 80)).shape
        torch.Size([1, 3, 32, 32])
    """

    image_size: int
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resize_to: int | tuple[int, int] = 0
    resample: int = 3
    pad: bool = False
    round_crop: bool = False
    fill: int = 0

    def __post_init__(self) -> None:
        if type(self.resample) is not int or self.resample not in RESAMPLING:
            raise ValueError(f"resample: expected 2 (bilinear) or 3 (bicubic), got {self.resample!r:.60}")
        for name, least in (("image_mean", -math.inf), ("image_std", 0.0)):
            values = getattr(self, name)
            if len(values) != 3 or not all(least < value < math.inf for value in values):
                above = " above 0" if name == "image_std" else ""
                raise ValueError(f"{name}: expected 3 finite numbers{above}, got {values!s:.60}")
        object.__setattr__(self, "resize_to", self.resize_to or self.image_size)
        if any(type(side) is not int or not 1 <= side <= MOST_PIXELS for side in (self.image_size, *self.sides)):
            given = f"{self.image_size!r:.60} and {self.resize_to!r:.60}"
            raise ValueError(f"expected sides of 1 to {MOST_PIXELS} pixels, got {given}")
        if min(self.sides) < self.image_size:
            raise ValueError(f"image_size: expected 1 to resize_to={self.resize_to}, got {self.image_size}")
        if type(self.fill) is not int or not 0 <= self.fill <= 255:
            raise ValueError(f"fill: expected a grey level from 0 to 255, got {self.fill!r:.60}")
        if self.pad and self.resize_to != self.image_size:
            raise ValueError(f"pad: expected resize_to to be image_size {self.image_size}, got {self.resize_to}")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width that a square image is resized to, in pixels."""
        return self.resize_to if isinstance(self.resize_to, tuple) else (self.resize_to, self.resize_to)

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn a PIL image into a normalised float32 tensor (3, S, S)."""
        image = image.convert("RGB")
        height, width = self.resized(image.height, image.width)
        if max(height, width) > _SLENDER * min(height, width) and not self.pad:
            image = self._resize_kept(image, width, height)
        elif (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling(self.resample))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return self._normalise(self._crop(pixels.float() / 255))

    def _resize_kept(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """Resize to what the crop would keep of (``width``, ``height``).

        A pixel of the result has the centre it has in the whole: pixel i of n lies at (i + 1/2)·N/n of N pixels. The
        image is cut to the pixels that the filter reads before it is resized, because PIL holds a box in float32, whose
        rounding grows with the distance from the corner.
        """
        spans = [self._kept(*side) for side in ((image.width, width), (image.height, height))]
        (left, right, x0, x1), (top, bottom, y0, y1) = spans
        part = image.crop((left, top, right, bottom))
        return part.resize((self.image_size, self.image_size), Image.Resampling(self.resample), (x0, y0, x1, y1))

    def _kept(self, old: int, new: int) -> tuple[int, int, float, float]:
        """Return the pixels of a side that the crop reads, first and last + 1, and the span in them that it keeps."""
        scale = old / new
        start = self._corner(new) * scale
        end = min(start + self.image_size * scale, old)
        margin = _SUPPORT * max(scale, 1) + 1
        first, last = max(0, int(start - margin)), min(old, int(end + margin) + 1)
        return first, last, start - first, end - first

    def differentiable(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) with values in [0, 1] to (B, 3, S, S), differentiably.

        Raises:
            ValueError: The images have another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(images.shape)}")
        size = self.resized(*images.shape[-2:])
        if size != tuple(images.shape[-2:]):
            mode = RESAMPLING[self.resample]
            images = F.interpolate(images, size, mode=mode, align_corners=False, antialias=True)
            # Bicubic resizing overshoots. The value is clipped as PIL does, but not the gradient, so that a saturated
            # pixel still gets one.
            images = images + (images.clamp(0, 1) - images).detach()
        return self._normalise(self._crop(images))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return (H, W) with ``resize_to`` as the shorter side, the longer rounded down; as the longer with ``pad``."""
        if self.pad:  # rounded as open_clip does
            longest = max(height, width) / self.image_size
            return max(1, round(height / longest)), max(1, round(width / longest))
        if isinstance(self.resize_to, tuple):
            return self.resize_to
        short = self.resize_to
        if height <= width:
            return short, int(short * width / height)
        return int(short * height / width), short

    def _crop(self, images: Tensor) -> Tensor:
        size = self.image_size
        if self.pad:
            above, before = ((size - side) // 2 for side in images.shape[-2:])
            below, after = size - images.shape[-2] - above, size - images.shape[-1] - before
            return F.pad(images, (before, after, above, below), value=self.fill / 255)
        top, left = map(self._corner, images.shape[-2:])
        return images[..., top : top + size, left : left + size]

    def _corner(self, side: int) -> int:
        """Return where the crop of a side begins."""
        spare = side - self.image_size
        return round(spare / 2) if self.round_crop else spare // 2

    def _normalise(self, images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        return (images - mean) / std

    def described(self) -> dict[str, Any]:
        """Return all that the result depends on, as JSON holds it; a CLIP's fingerprint reads it."""
        later = ("pad", "round_crop", "fill")  # which former versions did not have: their fingerprints stay
        return {name: value for name, value in asdict(self).items() if value or name not in later}

    def record(self) -> str:
        """Return in words what is done to an image, for the record of a score."""
        if self.pad:
            return f"resize longest side {self.image_size} {RESAMPLING[self.resample]}, pad {self.image_size}"
        return f"resize {self.resize_to} {RESAMPLING[self.resample]}, crop {self.image_size}"

    def save_pretrained(self, folder: str | Path) -> None:
        """Save ``preprocessor_config.json`` as ``CLIPImageProcessorPil`` does.

        Raises:
            ValueError: It pads, for which that file has no form.
        """
        if self.pad:
            raise ValueError("preprocessing with pad=True cannot be saved: preprocessor_config.json has no form for it")
        size = {"height": self.sides[0], "width": self.sides[1]}
        if not isinstance(self.resize_to, tuple):
            size = {"shortest_edge": self.resize_to}
        theirs = CLIPImageProcessorPil(
            size=size,
            crop_size={"height": self.image_size, "width": self.image_size},
            image_mean=list(self.image_mean),
            image_std=list(self.image_std),
            resample=self.resample,
        )
        if self.round_crop:
            theirs.round_crop = True  # kept in the file, and read by this class alone
        theirs.save_pretrained(folder)

    @classmethod
    def from_json(cls, path: str | Path) -> ImageProcessor:
        """Read the ``preprocessor_config.json`` of a dual encoder, as the class of ``transformers`` that it names does.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file is damaged, or asks for something other than resizing, a square crop of the centre and
                normalisation.
        """
        try:
            return cls.from_dict(read_json(path))
        except ValueError as error:
            raise ValueError(f"{Path(path).name}: {error!s:.240}") from error

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ImageProcessor:
        """Make it from what ``preprocessor_config.json`` or ``processor_config.json`` hold, as :meth:`from_json` does.

        Raises:
            ValueError: As for :meth:`from_json`.
        """
        steps = read_steps(config)
        return cls(**vars(steps), round_crop=config.get("image_processor", config).get("round_crop") is True)
