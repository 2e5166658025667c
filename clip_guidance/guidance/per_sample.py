"""Numbers of each sample of a batch: brought to its shape, root mean squares and their bound, powers of two."""

from dataclasses import dataclass

import torch
from torch import Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """View one number per sample, (B,), as (B, 1, ...) with as many dimensions as ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1))


def rms(x: Tensor) -> Tensor:
    """Return the root mean square of each sample of (B, ...), as (B,), also where the squares would leave float32."""
    factor = power_of_two(x)
    return (x * factor).flatten(1).square().mean(1).sqrt() / factor.flatten()


def power_of_two(x: Tensor) -> Tensor:
    """Return the power of two that brings a sample's largest element into (1/2, 1].

    It has the shape (B, 1, ...), and is 1 for a sample that is 0 or not finite.
    """
    largest = x.detach().flatten(1).abs().amax(1)
    factor = torch.exp2(-torch.frexp(largest)[1].to(largest.dtype).clamp(-100, 100))
    factor = torch.where(largest.isfinite() & (largest > 0), factor, torch.ones_like(factor))
    return per_sample(factor, x)


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
