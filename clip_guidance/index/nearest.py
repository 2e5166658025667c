"""Exact nearest neighbours by cosine: a running top k over blocks of a memory map, so that memory stays constant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from clip_guidance.index.vectors import BLOCK, DENSE


@dataclass(frozen=True)
class Nearest:
    """Hold the best rows for each of q queries, best first.

    Attributes:
        scores: Cosines (q, k) in [-1, 1].
        rows: Row numbers (q, k), int64.
    """

    scores: np.ndarray
    rows: np.ndarray


def nearest(vectors: np.ndarray, rows: np.ndarray, queries: np.ndarray, k: int, block: int = BLOCK) -> Nearest:
    """Find the k rows with the largest cosine to each query; of equal ones the earlier row comes first.

    Args:
        vectors: Unit vectors (n, d), usually a memory map.
        rows: Rows that are searched, ascending int64 (m,).
        queries: Unit vectors (q, d).
        k: Number of rows for each query; min(k, m) are returned.
        block: Rows held in memory at once.
    """
    found = [(np.empty(0, np.float32), np.empty(0, np.int64))] * len(queries)
    for numbers, scores in _scored(vectors, rows, np.asarray(queries, np.float32), block):
        found = [_best(*best, row, numbers, k) for best, row in zip(found, scores, strict=True)]
    shape = (len(queries), min(k, len(rows)))
    return Nearest(
        np.array([scores for scores, _ in found], np.float32).reshape(shape).clip(-1, 1),
        np.array([numbers for _, numbers in found], np.int64).reshape(shape),
    )


def _scored(
    vectors: np.ndarray, rows: np.ndarray, queries: np.ndarray, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows, at most ``size``, and their cosines to the queries (q, rows).

    Where the rows lie close together, those between are compared too: leaving out their cosines costs less than
    copying the vectors that are wanted.
    """
    start = 0
    while start < len(rows):
        end = int(np.searchsorted(rows, rows[start] + size))
        first, last = int(rows[start]), int(rows[end - 1]) + 1
        dense = last - first <= DENSE * (end - start)
        numbers = rows[start : end if dense else start + size]
        with np.errstate(all="ignore"):  # what belongs to no image may be any number
            part = np.asarray(vectors[first:last] if dense else vectors[numbers], np.float32)
            scores = _cosines(queries, part)
        yield numbers, scores if len(part) == len(numbers) else scores[:, numbers - first]
        start += len(numbers)


def _cosines(queries: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Compute the cosines (q, n).

    For one vector BLAS reads the matrix once; for a product of matrices it would first copy the matrix in tiles.
    """
    return (part @ queries[0])[None] if len(queries) == 1 else queries @ part.T


def _best(
    best: np.ndarray, best_rows: np.ndarray, scores: np.ndarray, rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the k best rows found before, best first, with the rows of a block."""
    if len(best) == k:  # most of a block cannot be among the best; equal scores can: the row decides
        near = np.flatnonzero(scores >= best[-1])
        scores, rows = scores[near], rows[near]
    scores, rows = np.concatenate([best, scores]), np.concatenate([best_rows, rows])
    if len(scores) > k:
        least = np.partition(scores, -k)[-k]
        kept = scores >= least  # keeps all that equal the k-th, so that the row decides and not chance
        scores, rows = scores[kept], rows[kept]
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]
