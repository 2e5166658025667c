"""What every score of a single image answers to, so that one encoding of the images serves them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from clip_guidance.clip import CLIP


class ImageScore(Protocol):
    """A number for each image, from its embedding and those of k texts."""

    @property
    def name(self) -> str:
        """What :func:`get_image_score` finds it by; the column of a table."""

    @property
    def needs_prompt(self) -> bool:
        """Whether :meth:`texts` depends on the image's prompt."""

    def texts(self, prompt: str) -> list[str]:
        """The k texts to encode beside an image: made of its prompt, or the same for all; k may be 0."""

    def scores(self, clip: CLIP, image_embeds: Tensor, text_embeds: Tensor | None) -> Tensor:
        """Unit vectors of images (n, d) and of the texts of each (n, k, d), None where k is 0, to (n,) scores."""

    def mean(self, scores: Tensor) -> float:
        """One number for many images, from their (n,) scores, added up in float64."""

    def record(self, clip: CLIP) -> dict[str, Any]:
        """All that is needed to compute the same number again, in flat columns, ``definition`` the first of them."""


def expect_texts(name: str, image_embeds: Tensor, text_embeds: Tensor | None, count: int) -> Tensor:
    """The embeddings of the texts, checked.

    Raises:
        ValueError: they are not (n, count, d).
    """
    expected = (len(image_embeds), count, image_embeds.shape[-1])
    if text_embeds is None or tuple(text_embeds.shape) != expected:
        found = None if text_embeds is None else tuple(text_embeds.shape)
        raise ValueError(f"{name}: expected text_embeds of shape {expected}, got {found}")
    return text_embeds
