"""Paired comparison of two runs: the same prompts on both sides, so that the difficulty of a prompt cancels.

For the differences dᵢ = bᵢ − aᵢ of n pairs, the mean and the win rate, mean of [dᵢ > 0] + ½ [dᵢ = 0], are each given
with a percentile bootstrap interval over pairs (Efron 1979). A pair is what was drawn independently: a prompt, whose
images are averaged first, rather than an image. Below some 20 pairs a percentile interval is too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clip_guidance._display import DisplayMixin
from clip_guidance.metrics.statistics import Interval, bounds

MAX_DRAWS = 2**22  # resampled numbers in memory at once


@dataclass(frozen=True)
class PairedComparison(DisplayMixin):
    """Hold the comparison of run b against run a; a notebook shows its figures and the pairs that differ most.

    Attributes:
        keys: Keys of the n pairs, in the order of a.
        a: Scores of the first run, float64 (n,).
        b: Scores of the second run, float64 (n,).
        difference: Mean of b − a, with its interval.
        win_rate: Share of pairs in which b is higher, with its interval; a tie is half a win.
        only_a: Keys that b lacks.
        only_b: Keys that a lacks.
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
        """Return b − a, float64 (n,)."""
        return self.b - self.a


def compare_scores(
    a: Mapping[Any, float],
    b: Mapping[Any, float],
    resamples: int = 10_000,
    probability: float = 0.95,
    seed: int = 0,
) -> PairedComparison:
    """Compare two runs pair by pair.

    Args:
        a: Score of each key, such as a prompt, in the first run.
        b: Score of each key in the second run; both runs are scored by one definition and one judge.
        resamples: Bootstrap resamples of the n pairs, at least 1; more make the bounds steadier.
        probability: Probability of the intervals, in (0, 1).
        seed: Seed of the resamples; equal seeds give equal intervals.

    Returns:
        The mean difference and the win rate, each with its interval, and the keys without a partner.

    Raises:
        ValueError: Fewer than two keys pair, a score is not finite, or a setting is out of range.

    Example:
        >>> import clip_guidance as cg
        >>> a, b = {"cat": 20.0, "dog": 25.0, "bus": 22.0}, {"cat": 22.0, "dog": 26.0, "bus": 22.0}
        >>> found = cg.compare_scores(a, b)
        >>> found.difference
        Interval(estimate=1.0, low=0.0, high=2.0)
        >>> round(found.win_rate.estimate, 3)
        0.833
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
    """Draw n rows of ``values`` (n, c) anew, ``resamples`` times, and return their means (resamples, c)."""
    generator, n = torch.Generator().manual_seed(seed), len(values)
    sizes = torch.ones(resamples, dtype=torch.long).split(max(1, MAX_DRAWS // n))
    parts = [values[torch.randint(n, (len(size), n), generator=generator)].mean(1) for size in sizes]
    return torch.cat(parts)
