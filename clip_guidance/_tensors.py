"""Operations on tensors that several packages share."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_ENTRANCE = 2.0**8  # largest element of a gradient that enters a tower: it mostly shrinks on its way to the pixels


def at_least_float32(x: Tensor) -> Tensor:
    """Convert a tensor to float32; leave float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


def unit_vectors(x: Tensor) -> Tensor:
    """Scale the vectors (..., d) to length 1, in float32 or better; a zero vector stays zero."""
    return F.normalize(at_least_float32(x), dim=-1)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """View one number per sample, (B,), as (B, 1, ...) with as many dimensions as ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1))


def power_of_two(x: Tensor) -> Tensor:
    """Return the power of two that brings a sample's largest element into (1/2, 1].

    It has the shape (B, 1, ...), and is 1 for a sample that is 0 or not finite.
    """
    largest = x.detach().flatten(1).abs().amax(1)
    factor = torch.exp2(-torch.frexp(largest)[1].to(largest.dtype).clamp(-100, 100))
    factor = torch.where(largest.isfinite() & (largest > 0), factor, torch.ones_like(factor))
    return per_sample(factor, x)


def sized_for_half(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run ``network(x)``, float32 in and out, with gradients of a size that float16 holds."""
    x = x.view_as(x)  # a view of its own, whose gradient comes from this network alone
    output = network(x)
    if not (x.requires_grad and output.requires_grad):
        return output
    factors: list[Tensor] = []

    def enlarged(gradient: Tensor) -> Tensor:
        factors.append(_ENTRANCE * power_of_two(gradient))
        return gradient * factors[-1]

    output.register_hook(enlarged)
    x.register_hook(lambda gradient: gradient / per_sample(factors.pop(), gradient))
    return output


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return a floating-point type, given as such or by its name.

    Raises:
        ValueError: It is none.

    Example:
        >>> from clip_guidance._tensors import as_dtype
        >>> as_dtype("bfloat16")
        torch.bfloat16
    """
    named = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise ValueError(f"dtype: expected a floating-point type such as float32 or bfloat16, got {dtype!r:.60}")
    return named


def check_device(device: torch.device | str) -> torch.device:
    """Return a device, given as such or by its name, that this machine has.

    Raises:
        ValueError: There is no such device, or it is "meta", whose tensors have no values.

    Example:
        >>> from clip_guidance._tensors import check_device
        >>> check_device("cpu")
        device(type='cpu')
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:  # unknown, or torch is without it
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"device {device!s:.60}: {reason:.200}") from None
    if found.type == "meta":
        raise ValueError("device meta: its tensors have no values; expected cpu, cuda or another that computes")
    return found
