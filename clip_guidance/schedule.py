"""The learning rate of each step."""

from __future__ import annotations

import math


def warmup_steps(warmup: float, steps: int) -> int:
    """A number of steps from 1 on, below 1 a share of ``steps``, rounded.

    Raises:
        ValueError: it is negative, not finite, or no whole number where it should be one.
    """
    if not 0 <= warmup < math.inf or (warmup > 1 and warmup != int(warmup)):
        raise ValueError(f"warmup: expected a share of the steps in [0, 1) or a whole number of steps, got {warmup}")
    return int(warmup) if warmup >= 1 else round(warmup * steps)


def learning_rate(step: int, total: int, peak: float, warmup: float) -> float:
    """Linear warm-up to ``peak``, then half a cosine down to zero at ``total`` (SGDR, arXiv:1608.03983, eq. 5)."""
    rising = warmup_steps(warmup, total)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, total - rising))))
