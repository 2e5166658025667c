"""Numbers of each sample of a batch: brought to the sample's shape, and root mean squares."""

from torch import Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """View one number per sample, (B,), as (B, 1, ...) with as many dimensions as ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1))


def rms(x: Tensor) -> Tensor:
    """Return the root mean square of each sample of (B, ...), as (B,)."""
    return x.flatten(1).square().mean(1).sqrt()
