"""Exact nearest neighbours by cosine: a running top k over blocks of a memory map, so that memory stays constant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clip_guidance.index.vectors import BLOCK, blocks


@dataclass(frozen=True)
class Nearest:
    """The best rows for each of q queries, best first.

    Attributes:
        scores: (q, k) cosines in [-1, 1].
        rows: (q, k) int64.
    """

    scores: np.ndarray
    rows: np.ndarray


def nearest(vectors: np.ndarray, rows: np.ndarray, queries: np.ndarray, k: int, block: int = BLOCK) -> Nearest:
    """The k rows with the largest cosine to each query; of equal ones the earlier row first.

    Args:
        vectors: (n, d) unit vectors, usually a memory map.
        rows: which of them are searched, ascending int64 (m,).
        queries: (q, d) unit vectors.
        k: how many; min(k, m) are returned.
        block: rows held in memory at once.
    """
    found = [(np.empty(0, np.float32), np.empty(0, np.int64))] * len(queries)
    for start, part in blocks(vectors, rows, block):
        scores = _cosines(np.asarray(queries, np.float32), part)
        numbers = rows[start : start + len(part)]
        found = [_best(*best, row, numbers, k) for best, row in zip(found, scores, strict=True)]
    shape = (len(queries), min(k, len(rows)))
    return Nearest(
        np.array([scores for scores, _ in found], np.float32).reshape(shape).clip(-1, 1),
        np.array([numbers for _, numbers in found], np.int64).reshape(shape),
    )


def _cosines(queries: np.ndarray, part: np.ndarray) -> np.ndarray:
    """(q, n). BLAS reads a matrix once for one vector; as a product of matrices it would first copy it in tiles."""
    return (part @ queries[0])[None] if len(queries) == 1 else queries @ part.T


def _best(
    best: np.ndarray, best_rows: np.ndarray, scores: np.ndarray, rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of those found before, best first, and a block's."""
    if len(best) == k:  # most of a block cannot be among them; equals can, for the order of rows decides
        near = np.flatnonzero(scores >= best[-1])
        scores, rows = scores[near], rows[near]
    scores, rows = np.concatenate([best, scores]), np.concatenate([best_rows, rows])
    if len(scores) > k:
        least = np.partition(scores, -k)[-k]
        kept = scores >= least  # with all that equal the k-th, so that which one stays is not left to chance
        scores, rows = scores[kept], rows[kept]
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]
