"""What a decoder made, as images in [0, 1]: values are clipped, gradients are not."""

from typing import Any

from torch import Tensor

from clip_guidance._tensors import at_least_float32


def to_unit_range(pixels: Tensor) -> Tensor:
    """Map [-1, 1] to [0, 1]; clip the value, not the gradient: saturated pixels can change."""
    return _clipped(at_least_float32(pixels) / 2 + 0.5)


def _clipped(pixels: Tensor) -> Tensor:
    return pixels + (pixels.clamp(0, 1) - pixels).detach()


def checked_images(images: Any, sample: Tensor) -> Tensor:
    """Refuse what ``to_image`` returned unless it is images of the samples; clip them to [0, 1]."""
    if not isinstance(images, Tensor) or images.ndim not in (4, 5) or len(images) != len(sample):
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"to_image must return images ({len(sample)}, 3, H, W) in [0, 1], got {found}")
    if sample.requires_grad and not images.requires_grad:
        raise ValueError(
            "to_image must be differentiable; the images that it returned have no gradient (were they computed under "
            "torch.no_grad, detached, or taken through numpy or PIL?)"
        )
    return _clipped(at_least_float32(images))
