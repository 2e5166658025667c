"""Operations on tensors that several packages share."""

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Convert a tensor to float32; leave float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


def unit_vectors(x: Tensor) -> Tensor:
    """Scale the vectors (..., d) to length 1, in float32 or better; a zero vector stays zero."""
    return F.normalize(at_least_float32(x), dim=-1)


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
