"""Is one run better than another? Paired: the same prompts on both sides, so that what a prompt costs cancels.

Of the differences dᵢ = bᵢ − aᵢ of n pairs, the mean and the win rate, mean of [dᵢ > 0] + ½ [dᵢ = 0], each with its
percentile bootstrap interval over pairs (Efron 1979). A pair is what was drawn independently: a prompt, whose images
are averaged first, rather than an image. Below some 20 pairs a percentile interval is too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clip_guidance.metrics.statistics import Interval, bounds

MAX_DRAWS = 2**22  # drawn numbers in memory at once


@dataclass(frozen=True)
class PairedComparison:
    """Run b against run a.

    Attributes:
        keys: of the n pairs, in the order of a.
        a: float64 (n,), scores of the first run.
        b: float64 (n,), scores of the second.
        difference: mean of b − a.
        win_rate: share of pairs in which b is higher; a tie is half a win.
        only_a: keys that b lacks.
        only_b: keys that a lacks.
    """

    keys: list[Hashable]
    a: Tensor
    b: Tensor
    difference: Interval
    win_rate: Interval
    only_a: list[Hashable]
    only_b: list[Hashable]

    @property
    def differences(self) -> Tensor:
        """Float64 (n,), b − a."""
        return self.b - self.a

    def _repr_html_(self) -> str:
        from clip_guidance.report.html.page import fragment
        from clip_guidance.report.scores import comparison_parts

        return fragment(*comparison_parts(self))


def compare_scores(
    a: Mapping[Any, float],
    b: Mapping[Any, float],
    resamples: int = 10_000,
    probability: float = 0.95,
    seed: int = 0,
) -> PairedComparison:
    """Compares two runs pair by pair.

    Args:
        a: score of each key, such as a prompt, in the first run.
        b: the same of the second; both scored by one definition and one judge.
        resamples: bootstrap resamples of the n pairs.
        probability: that of the intervals, in (0, 1).
        seed: of the resamples.

    Raises:
        ValueError: fewer than two keys pair, a score is not finite, or a setting is out of range.
    """
    if resamples < 1 or not 0 < probability < 1:
        raise ValueError(f"expected resamples >= 1 and 0 < probability < 1, got {resamples} and {probability}")
    for name, run in (("a", a), ("b", b)):
        if bad := [key for key, score in run.items() if not math.isfinite(score)]:
            raise ValueError(f"run {name}: the score of {bad[0]!r} is {run[bad[0]]}, expected a finite number")
    keys = [key for key in a if key in b]
    if len(keys) < 2:
        shown = " and ".join(
            f"{len(run)} keys in {name} ({next(iter(run), None)!r}, ...)" for name, run in (("a", a), ("b", b))
        )
        raise ValueError(f"expected at least 2 pairs, got {len(keys)} of {shown}")
    scores_a, scores_b = (torch.tensor([run[key] for key in keys], dtype=torch.float64) for run in (a, b))
    differences = scores_b - scores_a
    wins = (differences > 0).double() + (differences == 0).double() / 2
    drawn = _resampled_means(torch.stack([differences, wins], 1), resamples, seed)
    difference, win_rate = (
        Interval(values.mean().item(), *bounds(means, probability))
        for values, means in zip((differences, wins), drawn.unbind(1), strict=True)
    )
    only_a, only_b = [key for key in a if key not in b], [key for key in b if key not in a]
    return PairedComparison(keys, scores_a, scores_b, difference, win_rate, only_a, only_b)


def _resampled_means(values: Tensor, resamples: int, seed: int) -> Tensor:
    """Means (resamples, c) of n rows of ``values`` (n, c), drawn anew from them."""
    generator, n = torch.Generator().manual_seed(seed), len(values)
    sizes = torch.ones(resamples, dtype=torch.long).split(max(1, MAX_DRAWS // n))
    parts = [values[torch.randint(n, (len(size), n), generator=generator)].mean(1) for size in sizes]
    return torch.cat(parts)
