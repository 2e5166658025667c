"""How far two sets of pictures are apart in the feature space of a CLIP, and in what way.

Kernel distance (Binkowski et al. 2018, arXiv:1801.01401): the unbiased squared maximum mean discrepancy with the
polynomial kernel k(x, y) = (x·y/d + 1)³. Unlike the Fréchet distance its expectation does not depend on the number of
pictures, so it can be compared across small sets. Its value depends on the CLIP: name it beside the number.
The published estimate averages 100 subsets of at most 1000; this one takes all pairs, which has the same expectation.

Precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991, equations 1 and 2) tell fidelity from variety: the
share of made pictures that look like a real one, and the share of real ones that a made one looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_guidance.clip import CLIP
from clip_guidance.images import ImageSource, as_list


@torch.no_grad()
def pooled_states(clip: CLIP, images: ImageSource | Iterable[ImageSource], batch_size: int = 64) -> Tensor:
    """The image tower's pooled states, before the projection; (n, D) in the CLIP's precision."""
    images = as_list(images)
    parts = []
    for start in range(0, len(images), batch_size):
        pixels = torch.stack([clip.preprocess(image) for image in images[start : start + batch_size]])
        parts.append(clip.image_encoder(pixels.to(clip.device, clip.dtype)).pooler_output)
    return torch.cat(parts)


def image_features(clip: CLIP, images: ImageSource | Iterable[ImageSource], batch_size: int = 64) -> Tensor:
    """The pooled states as :func:`kernel_features`, float32 (n, D)."""
    return kernel_features(pooled_states(clip, images, batch_size))


def kernel_features(states: Tensor) -> Tensor:
    """Pooled states (n, D), each scaled to length √D in float32.

    Only directions count, as everywhere in CLIP: else one blank picture, whose state is several times as long as any
    other, decides a cubic kernel alone.
    """
    return F.normalize(states.float(), dim=-1) * states.shape[1] ** 0.5


def kernel_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy, computed in float64 and in memory that grows with n + m alone.

    Args:
        features_a: (n, D), n at least 2.
        features_b: (m, D), m at least 2.

    Returns:
        0 in expectation where both sets come from one distribution; may be a little below.

    Raises:
        ValueError: the shapes do not fit.
    """
    a, b = checked_sets(features_a, features_b)
    within = mean_kernel(a, a, _kernel, others_only=True) + mean_kernel(b, b, _kernel, others_only=True)
    return within - 2 * mean_kernel(a, b, _kernel)


def mean_kernel(
    x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor], others_only: bool = False, chunk: int = 1024
) -> float:
    """Mean of a kernel over the pairs of two sets, of which a tile at a time is held.

    Args:
        x: (n, D).
        y: (m, D).
        kernel: (i, D) and (j, D) to (i, j).
        others_only: y is x, and no point is paired with itself.
        chunk: side of a tile.
    """
    total = x.new_zeros((), dtype=torch.float64)
    for i, rows in enumerate(x.split(chunk)):
        for j, columns in enumerate(y.split(chunk)):
            tile = kernel(rows, columns)
            total += tile.sum() - tile.trace() if others_only and i == j else tile.sum()
    return total.item() / (len(x) * (len(y) - others_only))


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds that hold it with the given probability."""

    estimate: float
    low: float
    high: float


def kernel_distance_interval(
    features_a: Tensor, features_b: Tensor, resamples: int = 1000, probability: float = 0.95, seed: int = 0
) -> Interval:
    """:func:`kernel_distance` and its percentile bootstrap interval over the pictures of ``features_a``.

    ``features_b``, the reference, is held: the interval says how far the distance would move with other pictures of
    the same kind as a's. Pairs of copies of one picture, which a resample has, are left out as within one picture.

    Args:
        features_a: (n, D), n at least 2.
        features_b: (m, D), m at least 2.
        resamples: number of resamples of n pictures.
        probability: that of the interval, in (0, 1).
        seed: of the resamples; equal seeds draw equal indices, so that intervals of paired sets can be compared.
    """
    a, b = checked_sets(features_a, features_b)
    between, within_b = _kernel(a, b).mean(1), _within(_kernel(b, b))
    kernel = _kernel(a, a).fill_diagonal_(0)
    counts = resample_counts(len(a), resamples, seed).to(a)
    pairs = len(a) ** 2 - counts.square().sum(1)  # of different pictures
    drawn = ((counts @ kernel) * counts).sum(1) / pairs + within_b - 2 * counts @ between / len(a)
    return Interval(kernel_distance(a, b), *bounds(drawn, probability))


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1]."""

    precision: float
    recall: float


def precision_recall(features: Tensor, real: Tensor, neighbours: int = 3) -> PrecisionRecall:
    """Precision and recall of made pictures against real ones.

    A set's manifold is the union of balls around its pictures, each reaching to its own ``neighbours``-th nearest of
    the set. Both shares grow with the size of the set that makes the manifold: compare sets of one size.

    Args:
        features: (n, D) of the made pictures, n above ``neighbours``.
        real: (m, D), m above ``neighbours``.
        neighbours: k of the paper, which uses 3.

    Raises:
        ValueError: there are too few pictures.
    """
    made, real = checked_sets(features, real)
    if min(len(made), len(real)) <= neighbours:
        raise ValueError(f"expected more than {neighbours} pictures in each set, got {len(made)} and {len(real)}")

    def covered(points: Tensor, centres: Tensor) -> float:
        radii = torch.cdist(centres, centres).kthvalue(neighbours + 1, dim=1).values  # the nearest is itself
        return (torch.cdist(points, centres) <= radii).any(1).double().mean().item()

    return PrecisionRecall(covered(made, real), covered(real, made))


def resample_counts(count: int, resamples: int, seed: int) -> Tensor:
    """How often each of ``count`` things is drawn, (resamples, count) in float64, when as many are drawn anew."""
    drawn = torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(resamples, count, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())


def bounds(drawn: Tensor, probability: float = 0.95) -> tuple[float, float]:
    """The middle ``probability`` of resampled estimates (R,): percentile bootstrap (Efron 1979)."""
    tail = (1 - probability) / 2
    low, high = torch.quantile(drawn, torch.tensor([tail, 1 - tail], dtype=drawn.dtype, device=drawn.device)).tolist()
    return low, high


def checked_sets(features_a: Tensor, features_b: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets of features in float64.

    Raises:
        ValueError: they are not (n, D) and (m, D) with n, m at least 2.
    """
    fits = features_a.ndim == 2 and features_a.shape[1:] == features_b.shape[1:]
    if not fits or min(len(features_a), len(features_b)) < 2:
        raise ValueError(
            "expected features of shapes (n, D) and (m, D) with n, m at least 2, got "
            f"{tuple(features_a.shape)} and {tuple(features_b.shape)}"
        )
    return features_a.double(), features_b.double()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(kernel: Tensor) -> Tensor:
    """Mean over pairs of different pictures."""
    return (kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1))
