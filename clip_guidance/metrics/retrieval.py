"""Retrieval recall: how often the right text (or image) is among the k most similar."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def recall_at_k(similarity: Tensor, targets: Tensor, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """R@k of N queries among M candidates of which one is right.

    Args:
        similarity: (N, M).
        targets: int64 (N,), the right candidate of each query.
        ks: the k to report.

    Returns:
        ``{"R@1": ..., "R@5": ...}`` in [0, 1]. A tie counts against the right candidate, so that a model that says
        nothing does not score.
    """
    right = similarity.gather(1, targets[:, None])
    ahead = (~(similarity < right)).sum(1) - 1  # not less similar (nan included), the right one itself left out
    return {f"R@{k}": (ahead < k).double().mean().item() for k in ks}


def unique(names: Sequence[str]) -> tuple[list[str], Tensor]:
    """The distinct names in order of appearance, and for each given name its number among them."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return list(numbers), torch.tensor([numbers[name] for name in names])


def hit_rate(similarity: Tensor, positives: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Retrieval with several right answers: the share of queries with one of them among the first k.

    Args:
        similarity: (N, M), queries by candidates.
        positives: bool (N, M), which candidates are right for which query; a query without one is left out.
        ks: the k to report.

    Returns:
        ``{"R@1": ..., ...}`` in [0, 1]; ties count against the right ones.
    """
    asked = positives.any(1)
    similarity, positives = similarity[asked], positives[asked]
    best = similarity.masked_fill(~positives, -math.inf).amax(1, keepdim=True)
    ahead = (~(similarity < best) & ~positives).sum(1)
    return {f"R@{k}": (ahead < k).double().mean().item() for k in ks}
