"""Image features: what the distances between sets of images are computed on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_guidance.clip import DualEncoder, as_clip
from clip_guidance.images.load import ImageSource, as_list


@torch.no_grad()
def pooled_states(clip: DualEncoder, images: ImageSource | Iterable[ImageSource], batch_size: int = 64) -> Tensor:
    """Encode images to the pooled states of the image tower, before the projection.

    Returns:
        States (n, D), in the precision of the CLIP.
    """
    clip, images = as_clip(clip), as_list(images)
    parts = []
    for start in range(0, len(images), batch_size):
        pixels = torch.stack([clip.preprocess(image) for image in images[start : start + batch_size]])
        parts.append(clip.image_states(pixels.to(clip.device, clip.dtype)))
    return torch.cat(parts)


def image_features(clip: DualEncoder, images: ImageSource | Iterable[ImageSource], batch_size: int = 64) -> Tensor:
    """Encode images to pooled states, scaled as :func:`kernel_features` does; float32 (n, D)."""
    return kernel_features(pooled_states(clip, images, batch_size))


def kernel_features(states: Tensor) -> Tensor:
    """Scale each pooled state (n, D) to the length √D, in float32.

    Only directions count, as everywhere in CLIP. Otherwise one blank image, whose state is several times as long as any
    other, decides a cubic kernel alone.
    """
    return F.normalize(states.float(), dim=-1) * states.shape[1] ** 0.5


def checked_sets(features_a: Tensor, features_b: Tensor) -> tuple[Tensor, Tensor]:
    """Check two sets of features and convert them to float64.

    Raises:
        ValueError: The shapes are not (n, D) and (m, D) with n, m at least 2.
    """
    fits = features_a.ndim == 2 and features_a.shape[1:] == features_b.shape[1:]
    if not fits or min(len(features_a), len(features_b)) < 2:
        raise ValueError(
            "expected features of shapes (n, D) and (m, D) with n, m at least 2, got "
            f"{tuple(features_a.shape)} and {tuple(features_b.shape)}"
        )
    return features_a.double(), features_b.double()
