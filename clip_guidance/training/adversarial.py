"""Pictures moved against their names: adversarial training of a CLIP that is to guide.

Each picture x is replaced by one that the CLIP takes less for what it is,

    x' = x + r·g/‖g‖,    g = ∇_x loss(x + n),    r uniform in [0, radius],

one step of the gradient, from a random start n (Madry et al. 2018, arXiv:1706.06083; one step: Wong et al. 2020,
arXiv:2001.03994), in the norm ‖·‖₂ of Miyato et al. 2018 (arXiv:1704.03976). Guidance is such an adversary with the
sign turned: it moves a picture so that the CLIP likes it, whether or not it looks better. A classifier that does not
change its mind for small changes has gradients along which things are seen (Santurkar et al. 2019, arXiv:1906.09453).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

START = 0.3  # length of the random start, as a share of the radius


def moved_against(pictures: Tensor, losses: Callable[[Tensor], Tensor], radius: float) -> Tensor:
    """Pictures moved by up to ``radius`` to where their losses are higher, and no gradient leads back.

    Drawn from torch's global random state.

    Args:
        pictures: (B, 3, H, W) in [0, 1]; noise may lead outside.
        losses: of pictures, (B,), each of its own picture alone; parameters get no gradient from here.
        radius: largest L2 distance of a picture to where it was, over all its values in [0, 1].

    Returns:
        (B, 3, H, W), in [0, 1] where ``pictures`` are.
    """
    if not radius:
        return pictures
    start = START * radius * _unit(torch.randn_like(pictures))
    lengths = radius * torch.rand(len(pictures), 1, 1, 1, device=pictures.device, dtype=pictures.dtype)
    with torch.enable_grad():
        inputs = (pictures.detach() + start).requires_grad_()
        (gradient,) = torch.autograd.grad(losses(inputs).sum(), inputs)
    moved = pictures.detach() + lengths * _unit(gradient)
    lowest, highest = pictures.detach().clamp(max=0), pictures.detach().clamp(min=1)  # noise is not cut
    return torch.minimum(torch.maximum(moved, lowest), highest)


def _unit(direction: Tensor) -> Tensor:
    """Each picture's direction (B, ...) of length 1; 0 where there is none."""
    length = direction.flatten(1).norm(dim=1).view(-1, *[1] * (direction.ndim - 1))
    return torch.where(length > 0, direction / length.clamp(min=torch.finfo(direction.dtype).tiny), 0)
