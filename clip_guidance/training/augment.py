"""Random views of images on white, for training: a shift, a scale, a turn, colours off or gone, a hole, noise.

Drawn from torch's global random state, which the training loop sets from (seed, step).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def random_views(
    images: Tensor, scale: float = 0.25, shift: float = 0.1, colour: float = 0.2, rotation: float = 0.2
) -> Tensor:
    """One random view of each image.

    Args:
        images: (B, 3, H, W) in [0, 1]; what moves in from outside is white.
        scale: each image is magnified by a factor in [1 - scale, 1 + scale].
        shift: and moved by up to this share of its side.
        colour: brightness and contrast change by up to this share.
        rotation: and turned by up to this angle, in radians.

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
    views = 1 + F.grid_sample(images - 1, grid, align_corners=False)  # outside is 0 + 1: white
    contrast, brightness = 1 + uniform(colour, 1, 1, 1), 1 + uniform(colour, 1, 1, 1)
    return ((views - 0.5) * contrast + 0.5).mul(brightness).clamp(0, 1)


def random_grey(images: Tensor, share: float) -> Tensor:
    """This share of the images without colours (Chen et al. 2020, arXiv:2002.05709, appendix A).

    What is left to know them by is their shape.

    Args:
        images: (B, 3, H, W) in [0, 1].
        share: probability of an image to lose its colours.
    """
    luma = (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)  # ITU-R BT.601
    chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < share
    return torch.where(chosen, luma.expand_as(images), images)


def random_holes(images: Tensor, share: float, side: float = 0.4) -> Tensor:
    """A white square hole in this share of the images (DeVries & Taylor 2017, arXiv:1708.04552).

    Args:
        images: (B, 3, H, W) in [0, 1].
        share: probability of an image to get a hole.
        side: of the hole, as a share of the image's; its centre is anywhere in the image.
    """
    count, _, height, width = images.shape
    drawn = torch.rand(3, count, 1, 1, device=images.device)
    y = torch.arange(height, device=images.device)[:, None] / height
    x = torch.arange(width, device=images.device) / width
    hole = ((y - drawn[0]).abs() < side / 2) & ((x - drawn[1]).abs() < side / 2) & (drawn[2] < share)
    return images.masked_fill(hole[:, None], 1.0)


def random_noise(images: Tensor, share: float = 0.5, sigma: float = 0.25) -> Tensor:
    """Gaussian noise on some of the images.

    A classifier trained on noisy images has gradients that people recognise (Kaur et al. 2019, arXiv:1910.08640), and
    what guides must know the half-made images of a sampler.

    Args:
        images: (B, 3, H, W) in [0, 1].
        share: probability of an image to get noise.
        sigma: its standard deviation is uniform in [0, sigma].

    Returns:
        (B, 3, H, W), not clamped: a clamp would make the noise of white backgrounds one-sided.
    """
    drawn = torch.rand(2, len(images), 1, 1, 1, device=images.device)
    return images + (drawn[0] < share) * drawn[1] * sigma * torch.randn_like(images)
