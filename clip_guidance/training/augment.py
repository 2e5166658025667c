"""Random augmentation of images: shift, scale, rotation, colour, erasing, noise.

All draws are from torch's global random state, which the training loop sets from (seed, step).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def random_views(
    images: Tensor, scale: float = 0.25, shift: float = 0.1, colour: float = 0.2, rotation: float = 0.2
) -> Tensor:
    """Shift, scale, rotate and recolour each image at random.

    Args:
        images: (B, 3, H, W) in [0, 1]; what moves in from outside has the values of the border, so it is white only
            where the border is.
        scale: Each image is magnified by a factor in [1 - scale, 1 + scale].
        shift: Each image is moved by up to this share of its side.
        colour: Brightness and contrast change by up to this share.
        rotation: Each image is turned by up to this angle, in radians.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    count = len(images)

    def uniform(bound: float, *shape: int) -> Tensor:
        return ((torch.rand(count, *shape, device=images.device) * 2 - 1) * bound).to(images.dtype)

    theta = images.new_zeros(count, 2, 3)
    magnified, angle = 1 + uniform(scale), uniform(rotation)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos() / magnified
    theta[:, 1, 0] = angle.sin() / magnified
    theta[:, 0, 1] = -theta[:, 1, 0]
    theta[:, :, 2] = 2 * uniform(shift, 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    views = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    contrast, brightness = 1 + uniform(colour, 1, 1, 1), 1 + uniform(colour, 1, 1, 1)
    return ((views - 0.5) * contrast + 0.5).mul(brightness).clamp(0, 1)


def random_grayscale(images: Tensor, probability: float) -> Tensor:
    """Take the colours from some of the images.

    A gray image can be recognised by its shape alone (Chen et al. 2020, arXiv:2002.05709, appendix A).

    Args:
        images: (B, 3, H, W) in [0, 1].
        probability: Of each image to lose its colours.
    """
    luma = (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)  # ITU-R BT.601
    chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < probability
    return torch.where(chosen, luma.expand_as(images), images)


def random_erasing(images: Tensor, probability: float, side: float = 0.4) -> Tensor:
    """Erase a square of some of the images (DeVries & Taylor 2017, arXiv:1708.04552).

    Args:
        images: (B, 3, H, W) in [0, 1]; the square becomes white.
        probability: Of each image to lose a square.
        side: Of the square, as a share of the image's side; its centre is anywhere in the image.
    """
    count, _, height, width = images.shape
    drawn = torch.rand(3, count, 1, 1, device=images.device)
    y = torch.arange(height, device=images.device)[:, None] / height
    x = torch.arange(width, device=images.device) / width
    erased = ((y - drawn[0]).abs() < side / 2) & ((x - drawn[1]).abs() < side / 2) & (drawn[2] < probability)
    return images.masked_fill(erased[:, None], 1.0)


def random_noise(images: Tensor, max_std: float = 0.25, probability: float = 0.5) -> Tensor:
    """Add Gaussian noise to some of the images.

    A classifier trained on noisy images has gradients that people recognise (Kaur et al. 2019, arXiv:1910.08640), and
    a CLIP that guides sees the unfinished images of a sampler.

    Args:
        images: (B, 3, H, W) in [0, 1].
        max_std: The standard deviation is uniform in [0, max_std].
        probability: Of each image to get noise.

    Returns:
        (B, 3, H, W), not clamped: a clamp would make the noise of white backgrounds one-sided.
    """
    drawn = torch.rand(2, len(images), 1, 1, 1, device=images.device)
    return images + (drawn[0] < probability) * drawn[1] * max_std * torch.randn_like(images)
