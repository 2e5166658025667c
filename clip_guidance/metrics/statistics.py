"""Intervals of estimates: percentile bootstrap (Efron 1979) and Wilson's score interval (Wilson 1927)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """Hold an estimate and the bounds that contain it with the given probability."""

    estimate: float
    low: float
    high: float


def resample_counts(count: int, resamples: int, seed: int) -> Tensor:
    """Draw ``count`` of ``count`` things anew and count them: float64 (resamples, count)."""
    drawn = torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(resamples, count, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())


def bounds(drawn: Tensor, probability: float = 0.95) -> tuple[float, float]:
    """Return the bounds of the middle ``probability`` of resampled estimates (R,): percentile bootstrap."""
    tail = (1 - probability) / 2
    low, high = torch.quantile(drawn, torch.tensor([tail, 1 - tail], dtype=drawn.dtype, device=drawn.device)).tolist()
    return low, high


def wilson_interval(share: float, count: int, confidence: float = 0.95) -> Interval:
    """Compute Wilson's score interval of a share of ``count`` independent cases.

    Raises:
        ValueError: There is no case, or ``share`` is not in [0, 1].

    Example:
        >>> interval = wilson_interval(0.5, 20)
        >>> round(interval.low, 3), round(interval.high, 3)
        (0.299, 0.701)
    """
    if count < 1 or not 0 <= share <= 1:
        raise ValueError(f"expected a share in [0, 1] of at least one case, got {share} of {count}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return Interval(share, max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale))


def with_intervals(shares: dict[str, float], count: int) -> dict[str, float]:
    """Put behind each share the bounds of :func:`wilson_interval`, as ``name_low`` and ``name_high``."""
    found: dict[str, float] = {}
    for name, share in shares.items():
        interval = wilson_interval(share, count)
        found |= {name: share, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found
