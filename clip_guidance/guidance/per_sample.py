"""Numbers of each sample of a batch: root mean squares and their bound, whether all is finite."""

from dataclasses import dataclass

import torch
from torch import Tensor

from clip_guidance._tensors import per_sample, power_of_two


def rms(x: Tensor) -> Tensor:
    """Return the root mean square of each sample of (B, ...), as (B,), also where the squares would leave float32."""
    factor = power_of_two(x)
    return (x * factor).flatten(1).square().mean(1).sqrt() / factor.flatten()


def are_finite(x: Tensor) -> Tensor:
    """Return whether all elements of each sample of (B, ...) are finite, as (B,)."""
    return x.flatten(1).isfinite().all(1)


@dataclass(frozen=True)
class Capped:
    """Hold shifts after the cap.

    Attributes:
        shift: The shifts (B, ...).
        count: Number of samples whose shift was longer than its limit.
    """

    shift: Tensor
    count: int


def capped(shift: Tensor, limit: Tensor) -> Capped:
    """Shorten shifts (B, ...) to a root mean square of at most ``limit``, (B,)."""
    length = rms(shift)
    longer = length > limit
    factor = torch.where(longer, limit / length.clamp(min=torch.finfo(length.dtype).tiny), 1.0)
    return Capped(shift * per_sample(factor, shift), int(longer.sum()))
