"""One protocol for every score of a single image, so that one encoding of the images serves them all.

A score says which texts it wants to see beside an image and turns embeddings into numbers; reading images, encoding
and writing results are the caller's. By name there are

    torchmetrics, hessel, cosine      the image against its prompt (clip_guidance.metrics.clip_score)
    clip-iqa[:PAIR]                   a pair of opposite texts: "quality", "good photo", or own "sharp art/blurred art"
    aesthetic:PATH.safetensors        a linear head on the image's embedding
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from clip_guidance.images.load import as_list
from clip_guidance.metrics.clip_score import DEFINITIONS, ScoreDefinition
from clip_guidance.metrics.protocol import ImageScore, expect_texts

if TYPE_CHECKING:
    from clip_guidance.clip import CLIP


@dataclass(frozen=True)
class PromptScore:
    """An image against its own prompt, by a :class:`~clip_guidance.metrics.clip_score.ScoreDefinition`."""

    definition: ScoreDefinition
    needs_prompt = True

    @property
    def name(self) -> str:
        return self.definition.name

    def texts(self, prompt: str) -> list[str]:
        return [self.definition.prefix + prompt]

    def scores(self, clip: CLIP, image_embeds: Tensor, text_embeds: Tensor | None) -> Tensor:
        text_embeds = expect_texts(self.name, image_embeds, text_embeds, count=1)
        return self.definition.scores((image_embeds * text_embeds[:, 0]).sum(-1))

    def mean(self, scores: Tensor) -> float:
        return self.definition.mean(scores)

    def record(self, clip: CLIP) -> dict[str, Any]:
        return self.definition.record(clip)


Score: TypeAlias = ImageScore | ScoreDefinition | str


def get_image_score(score: Score) -> ImageScore:
    """A score by its name; one that is passed as such comes back as it is.

    Args:
        score: "torchmetrics", "hessel", "cosine"; "clip-iqa" or "clip-iqa:" and the name of a built-in pair, its first
            text, or two own texts with a slash between them; "aesthetic:" and the path of a head.

    Raises:
        ValueError: no score has this name.
        ModelError: the head cannot be read.
    """
    if isinstance(score, ScoreDefinition):
        return PromptScore(score)
    if not isinstance(score, str):
        return score
    if score in DEFINITIONS:
        return PromptScore(DEFINITIONS[score])
    kind, _, rest = score.partition(":")
    if kind == "clip-iqa":
        from clip_guidance.metrics.clip_iqa import get_pair

        return get_pair(rest or "quality")
    if kind == "aesthetic" and rest:
        from clip_guidance.metrics.aesthetic import AestheticHead

        return AestheticHead.from_file(rest)
    known = ", ".join([*DEFINITIONS, "clip-iqa[:PAIR]", "aesthetic:PATH.safetensors"])
    raise ValueError(f"no score {score!r}; there are {known}")


def score_images(
    clip: CLIP, images: Any, score: Score, prompts: str | Sequence[str] | None = None, batch_size: int = 64
) -> Tensor:
    """Scores images that are in memory or few; each text is encoded once.

    Args:
        clip: the judge; not the one that guided the images.
        images: n images, as for ``CLIP.encode_image``.
        score: a score or its name.
        prompts: n texts, or one for all images; left out where the score needs none.
        batch_size: images encoded at once.

    Returns:
        (n,) scores; ``score.mean(scores)`` is the number to report for all of them.

    Raises:
        ValueError: the score needs prompts and got none, or their number is neither 1 nor n.
        ImageError: an image cannot be read.
    """
    score, images = get_image_score(score), as_list(images)
    prompts = [prompts or ""] if prompts is None or isinstance(prompts, str) else list(prompts)
    if len(prompts) not in (1, len(images)):
        raise ValueError(f"expected one text, or one for each of {len(images)} images, got {len(prompts)} texts")
    if score.needs_prompt and not all(prompt.strip() for prompt in prompts):
        raise ValueError(f"{score.name} compares images with their prompts: expected prompts, got an empty one")
    texts = [score.texts(prompt) for prompt in (prompts if score.needs_prompt else prompts[:1])]
    image_embeds = clip.encode_image(images, batch_size=batch_size)
    text_embeds = None
    if flat := list(dict.fromkeys(text for group in texts for text in group)):
        encoded = dict(zip(flat, clip.encode_text(flat), strict=True))
        stacked = torch.stack([torch.stack([encoded[text] for text in group]) for group in texts])
        text_embeds = stacked.expand(len(images), -1, -1)
    return score.scores(clip, image_embeds, text_embeds)
