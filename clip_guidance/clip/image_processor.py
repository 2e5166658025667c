"""Turn an image into what an image tower reads: resize the shorter side, crop the centre, normalise.

There are two forms of one map. ``__call__`` on PIL images equals ``transformers.CLIPImageProcessorPil``. Of an image
more than eight times as long as wide it resizes only what the crop keeps, on the same grid, so that its memory depends
on the output and not on the ratio: of 10⁶ pixels by one, 16 GB would be made of which 200 kB are kept.
:meth:`ImageProcessor.differentiable` on tensors lets gradients through, and equals it up to PIL's rounding to 8 bits
(both resize bicubically, a = -1/2, with an antialiasing filter).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil

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
        resize_to: Length of the shorter side before the crop, in pixels; 0 for ``image_size``.
        resample: PIL's number of the filter: 3 for bicubic, 2 for bilinear.

    Raises:
        ValueError: ``resample`` is neither 2 nor 3, or the crop is larger than what is cropped.

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
    resize_to: int = 0
    resample: int = 3

    def __post_init__(self) -> None:
        if self.resample not in RESAMPLING:
            raise ValueError(f"resample: expected 2 (bilinear) or 3 (bicubic), got {self.resample}")
        object.__setattr__(self, "resize_to", self.resize_to or self.image_size)
        if not 1 <= self.image_size <= self.resize_to:
            raise ValueError(f"image_size: expected 1 to resize_to={self.resize_to}, got {self.image_size}")

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn a PIL image into a normalised float32 tensor (3, S, S)."""
        image = image.convert("RGB")
        height, width = self._resized(image.height, image.width)
        if max(height, width) > _SLENDER * min(height, width):
            image = self._resize_kept(image, width, height)
        elif (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling(self.resample))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return self._normalise(self._crop(pixels).float() / 255)

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
        start = (new - self.image_size) // 2 * scale
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
        size = self._resized(*images.shape[-2:])
        if size != tuple(images.shape[-2:]):
            mode = RESAMPLING[self.resample]
            images = F.interpolate(images, size, mode=mode, align_corners=False, antialias=True)
            # Bicubic resizing overshoots. The value is clipped as PIL does, but not the gradient, so that a saturated
            # pixel still gets one.
            images = images + (images.clamp(0, 1) - images).detach()
        return self._normalise(self._crop(images))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Return (H, W) with ``resize_to`` as the shorter side; the longer is rounded down."""
        short = self.resize_to
        if height <= width:
            return short, int(short * width / height)
        return int(short * height / width), short

    def _crop(self, images: Tensor) -> Tensor:
        size = self.image_size
        top, left = ((side - size) // 2 for side in images.shape[-2:])
        return images[..., top : top + size, left : left + size]

    def _normalise(self, images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        return (images - mean) / std

    def save_pretrained(self, folder: str | Path) -> None:
        """Save ``preprocessor_config.json`` as ``CLIPImageProcessorPil`` does."""
        side = {"height": self.image_size, "width": self.image_size}
        CLIPImageProcessorPil(
            size={"shortest_edge": self.resize_to},
            crop_size=side,
            image_mean=list(self.image_mean),
            image_std=list(self.image_std),
            resample=self.resample,
        ).save_pretrained(folder)

    @classmethod
    def from_json(cls, path: str | Path) -> ImageProcessor:
        """Read the ``preprocessor_config.json`` of a CLIP.

        Raises:
            ValueError: The file asks for something other than resizing, centre crop and normalisation.
        """
        config = json.loads(Path(path).read_text())
        config = config.get("image_processor", config)
        for step in ("do_resize", "do_center_crop", "do_normalize"):
            if not config.get(step, True):
                raise ValueError(f"{path}: {step} is false, which CLIP's preprocessing never is")
        size, crop = config.get("size", 224), config.get("crop_size", 224)
        return cls(
            image_size=crop["height"] if isinstance(crop, dict) else crop,
            image_mean=tuple(map(float, config["image_mean"])),
            image_std=tuple(map(float, config["image_std"])),
            resize_to=size["shortest_edge"] if isinstance(size, dict) else size,
            resample=int(config.get("resample", 3)),
        )
