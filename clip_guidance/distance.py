"""Distance between two sets of pictures in the feature space of a CLIP.

Kernel distance (Binkowski et al. 2018, arXiv:1801.01401): the unbiased squared maximum mean discrepancy with the
polynomial kernel k(x, y) = (x·y/d + 1)³. Unlike the Fréchet distance its expectation does not depend on the number of
pictures, so it can be compared across small sets. Its value depends on the CLIP: name it beside the number.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_guidance.clip import CLIP
from clip_guidance.images import ImageSource, as_list


@torch.no_grad()
def image_features(clip: CLIP, images: ImageSource | Iterable[ImageSource], batch_size: int = 64) -> Tensor:
    """The image tower's pooled states, before the projection, each scaled to length √D; float32 (n, D).

    Only directions count, as everywhere in CLIP: else one blank picture, whose state is several times as long as any
    other, decides a cubic kernel alone.
    """
    images = as_list(images)
    parts = []
    for start in range(0, len(images), batch_size):
        pixels = torch.stack([clip.preprocess(image) for image in images[start : start + batch_size]])
        parts.append(clip.image_encoder(pixels.to(clip.device, clip.dtype)).pooler_output.float())
    features = torch.cat(parts)
    return F.normalize(features, dim=-1) * features.shape[1] ** 0.5


def kernel_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy, computed in float64.

    Args:
        features_a: (n, D), n at least 2.
        features_b: (m, D), m at least 2.

    Returns:
        0 in expectation where both sets come from one distribution; may be a little below.

    Raises:
        ValueError: the shapes do not fit.
    """
    fits = features_a.ndim == 2 and features_a.shape[1:] == features_b.shape[1:]
    if not fits or min(len(features_a), len(features_b)) < 2:
        raise ValueError(
            "expected features of shapes (n, D) and (m, D) with n, m at least 2, got "
            f"{tuple(features_a.shape)} and {tuple(features_b.shape)}"
        )
    a, b = features_a.double(), features_b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        """Mean over pairs of different pictures."""
        matrix = kernel(x, x)
        return (matrix.sum() - matrix.trace()) / (len(x) * (len(x) - 1))

    return (within(a) + within(b) - 2 * kernel(a, b).mean()).item()
