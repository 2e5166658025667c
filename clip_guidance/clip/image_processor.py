"""From an image to what an image tower reads: resize the shorter side, crop the centre, normalise.

Two forms of one map: ``__call__`` on PIL images equals ``transformers.CLIPImageProcessorPil``;
:meth:`ImageProcessor.differentiable` on tensors lets the gradient of guidance through and equals it up to PIL's
rounding to 8 bits (both resize bicubically, a = -1/2, with an antialiasing filter).
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

RESAMPLING = {2: "bilinear", 3: "bicubic"}  # by PIL's numbers


@dataclass(frozen=True)
class ImageProcessor:
    """Settings of the map.

    Args:
        image_size: side S of the square that comes out.
        image_mean, image_std: of the three channels, for values in [0, 1].
        resize_to: length of the shorter side before the crop; 0 for ``image_size``.
        resample: PIL's number of the filter, 3 for bicubic, 2 for bilinear.
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

    def __call__(self, image: Image.Image) -> Tensor:
        """A PIL image to a normalised float tensor (3, S, S)."""
        image = image.convert("RGB")
        height, width = self._resized(image.height, image.width)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling(self.resample))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return self._normalise(self._crop(pixels))

    def differentiable(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) with values in [0, 1] to (B, 3, S, S); the gradient flows through.

        Raises:
            ValueError: another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(images.shape)}")
        size = self._resized(*images.shape[-2:])
        if size != tuple(images.shape[-2:]):
            mode = RESAMPLING[self.resample]
            images = F.interpolate(images, size, mode=mode, align_corners=False, antialias=True)
            # bicubic overshoots; clip the value as PIL does, not the gradient: a saturated pixel can come back
            images = images + (images.clamp(0, 1) - images).detach()
        return self._normalise(self._crop(images))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) whose shorter side is ``resize_to``; the longer rounded down, as transformers does."""
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
        """Writes ``preprocessor_config.json`` as ``CLIPImageProcessorPil`` does, for whoever loads it without us."""
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
        """Reads the ``preprocessor_config.json`` of a CLIP.

        Raises:
            ValueError: it asks for something other than resize, centre crop and normalise.
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
