"""Random views of pictures on white, for training: a shift, a scale, a turn, colours a little off, noise.

Drawn from torch's global random state, which the training loop sets from (seed, step).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def random_views(
    images: Tensor, scale: float = 0.25, shift: float = 0.1, colour: float = 0.2, rotation: float = 0.2
) -> Tensor:
    """One random view of each picture.

    Args:
        images: (B, 3, H, W) in [0, 1]; what moves in from outside is white.
        scale: each picture is magnified by a factor in [1 - scale, 1 + scale].
        shift: and moved by up to this share of its side.
        colour: brightness and contrast change by up to this share.
        rotation: and turned by up to this angle, in radians.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    count = len(images)

    def uniform(bound: float, *shape: int) -> Tensor:
        return (torch.rand(count, *shape, device=images.device) * 2 - 1) * bound

    theta = torch.zeros(count, 2, 3, device=images.device)
    magnified, angle = 1 + uniform(scale), uniform(rotation)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos() / magnified
    theta[:, 1, 0] = angle.sin() / magnified
    theta[:, 0, 1] = -theta[:, 1, 0]
    theta[:, :, 2] = 2 * uniform(shift, 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    views = 1 + F.grid_sample(images - 1, grid, align_corners=False)  # outside is 0 + 1: white
    contrast, brightness = 1 + uniform(colour, 1, 1, 1), 1 + uniform(colour, 1, 1, 1)
    return ((views - 0.5) * contrast + 0.5).mul(brightness).clamp(0, 1)


def random_noise(images: Tensor, share: float = 0.5, sigma: float = 0.25) -> Tensor:
    """Gaussian noise on some of the pictures.

    A classifier trained on noisy pictures has gradients that people recognise (Kaur et al. 2019, arXiv:1910.08640), and
    what guides must know the half-made pictures of a sampler.

    Args:
        images: (B, 3, H, W) in [0, 1].
        share: probability of a picture to get noise.
        sigma: its standard deviation is uniform in [0, sigma].

    Returns:
        (B, 3, H, W), not clamped: a clamp would make the noise of white backgrounds one-sided.
    """
    drawn = torch.rand(2, len(images), 1, 1, 1, device=images.device)
    return images + (drawn[0] < share) * drawn[1] * sigma * torch.randn_like(images)
