"""The protocol of every score of a single image, so that one encoding of the images serves all of them.

A score says which texts it wants to see beside an image and turns embeddings into numbers. Reading images, encoding
and writing results are the caller's work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from clip_guidance.clip import DualEncoder


class Averaged(Protocol):
    """What a table of scores needs to know of a score, whoever computes it."""

    @property
    def name(self) -> str:
        """Name the score, as ``get_image_score`` finds it and as a table heads its column."""

    @property
    def needs_prompt(self) -> bool:
        """Say whether the score depends on the image's prompt."""

    def mean(self, scores: Tensor) -> float:
        """Average the scores (n,) of many images in float64, as the definition of the score says."""


class ImageScore(Averaged, Protocol):
    """Score images from their embeddings and those of k texts per image."""

    def texts(self, prompt: str) -> list[str]:
        """List the k texts to encode beside an image: made from its prompt, or the same for all; k may be 0."""

    def scores(self, clip: DualEncoder, image_embeds: Tensor, text_embeds: Tensor | None) -> Tensor:
        """Score n images.

        Args:
            clip: The judge.
            image_embeds: Unit vectors (n, d).
            text_embeds: Unit vectors of the texts of each image, (n, k, d); None where k is 0.

        Returns:
            Scores (n,).
        """

    def record(self, clip: DualEncoder) -> dict[str, Any]:
        """Return all that is needed to compute the same number again, in flat columns, ``definition`` first."""


def expect_texts(name: str, image_embeds: Tensor, text_embeds: Tensor | None, count: int) -> Tensor:
    """Check the shape of the texts' embeddings and return them.

    Raises:
        ValueError: The shape is not (n, count, d).
    """
    expected = (len(image_embeds), count, image_embeds.shape[-1])
    if text_embeds is None or tuple(text_embeds.shape) != expected:
        found = None if text_embeds is None else tuple(text_embeds.shape)
        raise ValueError(f"{name}: expected text_embeds of shape {expected}, got {found}")
    return text_embeds
