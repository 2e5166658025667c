"""Similarity of images: cosine of their CLIP embeddings (CLIP-I, Ruiz et al. 2023, arXiv:2208.12242)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clip_guidance.clip import DualEncoder, as_clip
from clip_guidance.index.duplicates import duplicate_groups

if TYPE_CHECKING:
    import torch


def image_similarity(clip: DualEncoder, images_a: Any, images_b: Any = None, batch_size: int = 64) -> torch.Tensor:
    """Compare every image of one list with every image of another.

    Args:
        clip: The model that encodes the images.
        images_a: Images, n of them, as for ``CLIP.encode_image``.
        images_b: Images, m of them; by default those of ``images_a``, each of which is then encoded once.
        batch_size: Images encoded at once; it changes speed and memory, not the cosines.

    Returns:
        Cosines (n, m) in [-1, 1].

    Raises:
        ImageError: An image cannot be read.

    Example:
        >>> import clip_guidance as cg
        >>> from PIL import Image
        >>> clip = cg.CLIP.from_pretrained("emoji")
        >>> red, pink, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "salmon", "blue"))
        >>> cosines = cg.image_similarity(clip, red, [pink, blue])
        >>> cosines.shape, bool(cosines[0, 0] > cosines[0, 1])
        (torch.Size([1, 2]), True)
    """
    clip = as_clip(clip)
    embeds_a = clip.encode_image(images_a, batch_size=batch_size)
    embeds_b = embeds_a if images_b is None else clip.encode_image(images_b, batch_size=batch_size)
    return (embeds_a @ embeds_b.T).clamp(-1, 1)


def duplicate_images(clip: DualEncoder, images: Any, threshold: float = 0.95, batch_size: int = 64) -> list[list[int]]:
    """Find near-duplicates: groups of images joined by a chain of cosines of at least ``threshold``.

    For the images of an index, whatever their number, see ``ImageIndex.duplicates``.

    Args:
        clip: The model that encodes the images.
        images: Images, n of them, as for ``CLIP.encode_image``.
        threshold: Cosine in (0, 1]; a lower one joins more images.
        batch_size: Images encoded at once; it changes speed and memory, not the groups.

    Returns:
        Groups of at least two positions in ``images``, ascending; groups are ordered by their first position.

    Raises:
        ValueError: The threshold is out of range.
        ImageError: An image cannot be read.

    Example:
        >>> import clip_guidance as cg
        >>> from PIL import Image
        >>> from clip_guidance.metrics.similarity import duplicate_images
        >>> clip = cg.CLIP.from_pretrained("emoji")
        >>> red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
        >>> duplicate_images(clip, [red, blue, red], threshold=0.999)
        [[0, 2]]
    """
    return duplicate_groups(as_clip(clip).encode_image(images, batch_size=batch_size).cpu().numpy(), threshold)
