"""Near-duplicates: the connected components of the graph that joins vectors whose cosine reaches a threshold.

All pairs are compared, a block against a block, so that memory stays constant. A disjoint-set forest (Galler & Fischer
1964) holds the components found so far.
"""

from __future__ import annotations

import numpy as np

from clip_guidance.index.vectors import blocks


def duplicate_groups(
    embeds: np.ndarray, threshold: float = 0.95, rows: np.ndarray | None = None, block: int = 2048
) -> list[list[int]]:
    """Group vectors that are joined by a chain of cosines of at least ``threshold``.

    Args:
        embeds: Unit vectors (n, d), an array or a memory map.
        threshold: Cosine in (0, 1].
        rows: Rows that are compared, ascending int64; all by default.
        block: Vectors compared at once with as many others.

    Returns:
        Groups of at least two row numbers, ascending; groups are ordered by their first row.

    Raises:
        ValueError: The threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: expected a cosine in (0, 1], got {threshold}")
    rows = np.arange(len(embeds)) if rows is None else rows
    least = threshold - max(1e-6, np.finfo(embeds.dtype).eps)  # a rounded cosine of 1
    parent = np.arange(len(rows))
    for start, part in blocks(embeds, rows, block):
        for offset, other in blocks(embeds, rows[start:], block):
            joined = part @ other.T >= least
            if offset == 0:
                joined = np.triu(joined, 1)
            for i in np.flatnonzero(joined.any(axis=1)):
                _join(parent, np.append(np.flatnonzero(joined[i]) + start + offset, start + i))
    root = _roots(parent, np.arange(len(rows)))
    order = np.argsort(root, kind="stable")
    groups = np.split(rows[order], np.flatnonzero(np.diff(root[order])) + 1)
    return [group.tolist() for group in groups if len(group) > 1]


def _join(parent: np.ndarray, members: np.ndarray) -> None:
    """Join the components of several vectors; the root is the smallest number in the component."""
    roots = _roots(parent, members)
    parent[roots] = parent[members] = roots.min()


def _roots(parent: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Find the root of each member's component."""
    roots = parent[members]
    while not np.array_equal(above := parent[roots], roots):
        roots = above
    return roots
