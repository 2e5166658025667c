"""Similarity of images: cosine of their CLIP embeddings (CLIP-I, Ruiz et al. 2023, arXiv:2208.12242)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from clip_guidance.clip import CLIP


def image_similarity(clip: CLIP, images_a: Any, images_b: Any = None, batch_size: int = 64) -> torch.Tensor:
    """Compares every image of one list with every image of another.

    Args:
        clip: the model.
        images_a: n images, as for ``CLIP.encode_image``.
        images_b: m images; by default those of ``images_a``, each of which is then encoded once.
        batch_size: images encoded at once.

    Returns:
        (n, m) cosines in [-1, 1].

    Raises:
        ImageError: an image cannot be read.
    """
    embeds_a = clip.encode_image(images_a, batch_size=batch_size)
    embeds_b = embeds_a if images_b is None else clip.encode_image(images_b, batch_size=batch_size)
    return (embeds_a @ embeds_b.T).clamp(-1, 1)


def paired_similarity(clip: CLIP, images_a: Any, images_b: Any, batch_size: int = 64) -> torch.Tensor:
    """Compares the first image of one list with the first of another, the second with the second, and so on.

    Args:
        clip: the model.
        images_a: n images, as for ``CLIP.encode_image``.
        images_b: n images.
        batch_size: images encoded at once.

    Returns:
        (n,) cosines in [-1, 1].

    Raises:
        ValueError: the lists differ in length.
        ImageError: an image cannot be read.
    """
    embeds_a = clip.encode_image(images_a, batch_size=batch_size)
    embeds_b = clip.encode_image(images_b, batch_size=batch_size)
    if len(embeds_a) != len(embeds_b):
        raise ValueError(f"expected as many images in both lists, got {len(embeds_a)} and {len(embeds_b)}")
    return (embeds_a * embeds_b).sum(-1).clamp(-1, 1)


def duplicate_images(clip: CLIP, images: Any, threshold: float = 0.95, batch_size: int = 64) -> list[list[int]]:
    """Finds near-duplicates: groups of images joined by a chain of cosines of at least ``threshold``.

    For the images of an index, whatever their number, see ``ImageIndex.duplicates``.

    Args:
        clip: the model.
        images: n images, as for ``CLIP.encode_image``.
        threshold: cosine in (0, 1].
        batch_size: images encoded at once.

    Returns:
        Groups of at least two positions in ``images``, ascending; groups by their first.

    Raises:
        ValueError: the threshold is out of range.
        ImageError: an image cannot be read.
    """
    from clip_guidance.index.duplicates import duplicate_groups

    return duplicate_groups(clip.encode_image(images, batch_size=batch_size).cpu().numpy(), threshold)
