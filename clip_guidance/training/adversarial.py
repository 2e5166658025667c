"""Images moved against their names: adversarial training of a CLIP that is to guide.

Each image x is replaced by one that the CLIP takes less for what it is,

    x' = x + r·g/‖g‖,    g = ∇_x loss(x + n),    r uniform in [0, radius],

one step of the gradient, from a random start n (Madry et al. 2018, arXiv:1706.06083; one step: Wong et al. 2020,
arXiv:2001.03994), in the norm ‖·‖₂ of Miyato et al. 2018 (arXiv:1704.03976). Guidance is such an adversary with the
sign turned: it moves an image so that the CLIP likes it, whether or not it looks better. A classifier that does not
change its mind for small changes has gradients along which things are seen (Santurkar et al. 2019, arXiv:1906.09453).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

START = 0.3  # length of the random start, as a share of the radius


def moved_against(images: Tensor, losses: Callable[[Tensor], Tensor], radius: float) -> Tensor:
    """Images moved by up to ``radius`` to where their losses are higher, and no gradient leads back.

    Drawn from torch's global random state.

    Args:
        images: (B, 3, H, W) in [0, 1]; noise may lead outside.
        losses: of images, (B,), each of its own image alone; parameters get no gradient from here.
        radius: largest L2 distance of an image to where it was, over all its values in [0, 1].

    Returns:
        (B, 3, H, W), in [0, 1] where ``images`` are.
    """
    if not radius:
        return images
    start = START * radius * _unit(torch.randn_like(images))
    lengths = radius * torch.rand(len(images), 1, 1, 1, device=images.device, dtype=images.dtype)
    with torch.enable_grad():
        inputs = (images.detach() + start).requires_grad_()
        (gradient,) = torch.autograd.grad(losses(inputs).sum(), inputs)
    moved = images.detach() + lengths * _unit(gradient)
    lowest, highest = images.detach().clamp(max=0), images.detach().clamp(min=1)  # noise is not cut
    return torch.minimum(torch.maximum(moved, lowest), highest)


def _unit(direction: Tensor) -> Tensor:
    """Each image's direction (B, ...) of length 1; 0 where there is none."""
    length = direction.flatten(1).norm(dim=1).view(-1, *[1] * (direction.ndim - 1))
    return torch.where(length > 0, direction / length.clamp(min=torch.finfo(direction.dtype).tiny), 0)
