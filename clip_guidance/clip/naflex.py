"""Preprocess for SigLIP 2 NaFlex: patches of an image in its own aspect ratio (arXiv:2502.14786, section 2.4.2).

An image is stretched to the largest whole number of patches per side that nearly keeps its ratio, with at most N
patches in all. Its tower reads a row per patch, and where each patch lies; both travel in one tensor (N, 3·P² + 2):

    pixels of a patch, normalised, row by row | its row in the image, from 1 | its column, from 1

A row of zeros fills up where an image has fewer patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import Siglip2ImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

from clip_guidance.clip.image_processor import RESAMPLING


@dataclass(frozen=True)
class NaFlexProcessor:
    """Cut images into patches; see the module. The forms are those of ``ImageProcessor``.

    Args:
        patch_size: Side P of a patch, in pixels.
        max_num_patches: Largest number N of patches.
        image_mean: Mean of each channel, for values in [0, 1].
        image_std: Deviation of each channel.
        resample: PIL's number of the filter: 2 for bilinear, 3 for bicubic.

    Example:
        >>> import torch
        >>> from clip_guidance.clip.naflex import NaFlexProcessor
        >>> patches = NaFlexProcessor(16, 64).differentiable(torch.rand(2, 3, 100, 200))
        >>> patches.shape, patches[0, :, -2:].amax(0)  # 5 rows of 10 patches
        (torch.Size([2, 64, 770]), tensor([ 5., 10.]))
    """

    patch_size: int = 16
    max_num_patches: int = 256
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: int = 2

    @property
    def sides(self) -> tuple[int, int]:
        """Longest height and width that an image is resized to, in pixels."""
        return (self.patch_size * self.max_num_patches,) * 2

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn a PIL image into patches, float32 (N, 3·P² + 2)."""
        height, width = self.resized(image.height, image.width)
        image = image.convert("RGB").resize((width, height), Image.Resampling(self.resample))
        return self._patches(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255)[0]

    def differentiable(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) with values in [0, 1] to patches (B, N, 3·P² + 2), differentiably.

        Raises:
            ValueError: The images have another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(images.shape)}")
        size = self.resized(*images.shape[-2:])
        resized = F.interpolate(images, size, mode=RESAMPLING[self.resample], align_corners=False, antialias=True)
        return self._patches(resized + (resized.clamp(0, 1) - resized).detach())  # clipped, but not its gradient

    def unpacked(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return the arguments of ``Siglip2Model.get_image_features`` for patches (B, N, 3·P² + 2)."""
        places = pixel_values[..., -2:]
        return {
            "pixel_values": pixel_values[..., :-2],
            "pixel_attention_mask": (places[..., 0] > 0).int(),
            "spatial_shapes": places.detach().amax(1).long(),
        }

    def described(self) -> dict[str, Any]:
        """Return all that the result depends on, as JSON holds it; a CLIP's fingerprint reads it."""
        return asdict(self)

    def record(self) -> str:
        """Return in words what is done to an image, for the record of a score."""
        return f"at most {self.max_num_patches} patches of {self.patch_size} {RESAMPLING[self.resample]}"

    def resized(self, height: int, width: int) -> tuple[int, int]:
        return get_image_size_for_max_num_patches(height, width, self.patch_size, self.max_num_patches)

    def _patches(self, images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        side, (height, width) = self.patch_size, images.shape[-2:]
        rows, columns = height // side, width // side
        cut = ((images - mean) / std).unflatten(-1, (columns, side)).unflatten(-3, (rows, side))
        patches = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, rows · columns, P · P · 3)
        places = torch.cartesian_prod(torch.arange(1, rows + 1), torch.arange(1, columns + 1)).view(-1, 2)
        packed = torch.cat([patches, places.to(patches).expand(len(patches), -1, -1)], -1)
        return F.pad(packed, (0, 0, 0, self.max_num_patches - rows * columns))


def read_naflex(config: Mapping[str, Any]) -> NaFlexProcessor | None:
    """Read the preprocessing of SigLIP 2 NaFlex from ``preprocessor_config.json``; None where it is another's.

    Raises:
        ValueError: A setting is out of range.
    """
    config = config.get("image_processor", config)
    named = config.get("image_processor_type") if isinstance(config, Mapping) else None
    if not isinstance(named, str) or not named.startswith("Siglip2ImageProcessor"):
        return None
    known = {
        key: value for key, value in config.items() if key in Siglip2ImageProcessorPil.valid_kwargs.__annotations__
    }
    theirs = Siglip2ImageProcessorPil(**known)
    sizes = {name: getattr(theirs, name) for name in ("patch_size", "max_num_patches")}
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r:.60}")
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not getattr(theirs, step):
            raise ValueError(f"{step} is false, which the preprocessing of NaFlex never is")
    resample = getattr(theirs.resample, "value", theirs.resample)
    if resample not in RESAMPLING:
        raise ValueError(f"resample: expected 2 (bilinear) or 3 (bicubic), got {resample!r:.60}")
    return NaFlexProcessor(
        **sizes, image_mean=tuple(theirs.image_mean), image_std=tuple(theirs.image_std), resample=resample
    )
