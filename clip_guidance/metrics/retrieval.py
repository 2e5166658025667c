"""Retrieval recall, R@k: how often a right text (or image) is among the k most similar."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 1024  # queries whose similarities to all candidates are held at once


def recall_at_k(queries: Tensor, candidates: Tensor, targets: Tensor, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Measure R@k: the share of queries with a right candidate among their k most similar ones.

    The similarity is the dot product. A tie counts against the right candidate, so that a model that says nothing does
    not score. Memory grows with the number of candidates, not with that of queries.

    Args:
        queries: Embeddings (N, d).
        candidates: Embeddings (M, d).
        targets: The right candidate of each query, int64 (N,); or, where a query may have several, the pairs of a query
            and a candidate that is right for it, int64 (P, 2). A query without a right candidate is left out.
        ks: The values of k to report.

    Returns:
        ``{"R@1": ..., "R@5": ...}``, each in [0, 1]; nan where no query has a right candidate.

    Example:
        >>> import torch
        >>> images = torch.eye(3)
        >>> texts = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8], [0.0, 0.0, 1.0]])
        >>> recall_at_k(images, texts, torch.arange(3), ks=(1, 2))
        {'R@1': 1.0, 'R@2': 1.0}
        >>> recall_at_k(images, texts, torch.tensor([[2, 0], [2, 1]]), ks=(1, 2))  # either text is right for image 2
        {'R@1': 0.0, 'R@2': 1.0}
    """
    pairs = targets if targets.ndim == 2 else torch.stack([torch.arange(len(targets)).to(targets), targets], 1)
    asked, hits = 0, dict.fromkeys(ks, 0)
    for start in range(0, len(queries), BLOCK):
        similarity = queries[start : start + BLOCK] @ candidates.T
        own = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + BLOCK)]
        right = torch.zeros_like(similarity, dtype=torch.bool)
        right[own[:, 0] - start, own[:, 1]] = True
        best = similarity.masked_fill(~right, -math.inf).amax(1, keepdim=True)
        ahead = (~(similarity < best) & ~right).sum(1)[right.any(1)]  # not less similar, nan included
        asked += len(ahead)
        hits = {k: count + int((ahead < k).sum()) for k, count in hits.items()}
    return {f"R@{k}": count / asked if asked else math.nan for k, count in hits.items()}


def unique(names: Sequence[str]) -> tuple[list[str], Tensor]:
    """List the distinct names in order of appearance, and number each given name among them, int64 (n,).

    Example:
        >>> unique(["cat", "dog", "cat"])
        (['cat', 'dog'], tensor([0, 1, 0]))
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return list(numbers), torch.tensor([numbers[name] for name in names])
