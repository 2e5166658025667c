"""Similarity of pictures: cosine of their CLIP embeddings (CLIP-I, Ruiz et al. 2023, arXiv:2208.12242)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from clip_guidance.clip import CLIP


def image_similarity(clip: CLIP, images_a: Any, images_b: Any = None, batch_size: int = 64) -> torch.Tensor:
    """Compares every picture of one list with every picture of another.

    Args:
        clip: the model.
        images_a: n pictures, as for ``CLIP.encode_image``.
        images_b: m pictures; by default those of ``images_a``, each of which is then encoded once.
        batch_size: pictures encoded at once.

    Returns:
        (n, m) cosines in [-1, 1].

    Raises:
        ImageError: a picture cannot be read.
    """
    embeds_a = clip.encode_image(images_a, batch_size=batch_size)
    embeds_b = embeds_a if images_b is None else clip.encode_image(images_b, batch_size=batch_size)
    return (embeds_a @ embeds_b.T).clamp(-1, 1)
