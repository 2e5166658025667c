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
