"""The image features that distances between sets of images are computed on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_guidance.clip import CLIP
from clip_guidance.images.load import ImageSource, as_list


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

    Only directions count, as everywhere in CLIP: else one blank image, whose state is several times as long as any
    other, decides a cubic kernel alone.
    """
    return F.normalize(states.float(), dim=-1) * states.shape[1] ** 0.5


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
