"""Scores of single images by their names, and the function that scores images by any of them.

    torchmetrics, hessel, cosine      the image against its prompt (clip_guidance.metrics.clip_score)
    sigmoid                           the probability of the pair, by SigLIP (clip_guidance.metrics.pair_probability)
    clip-iqa[:PAIR]                   a pair of opposite texts: "quality", "good photo", or own "sharp art/blurred art"
    aesthetic:PATH.safetensors        a linear head on the image's embedding

All of them follow :class:`~clip_guidance.metrics.protocol.ImageScore`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from clip_guidance.clip import DualEncoder, as_clip
from clip_guidance.images.load import as_list
from clip_guidance.metrics.aesthetic import AestheticHead
from clip_guidance.metrics.clip_iqa import get_pair
from clip_guidance.metrics.clip_score import DEFINITIONS, ScoreDefinition
from clip_guidance.metrics.pair_probability import PairProbability
from clip_guidance.metrics.protocol import ImageScore, expect_texts
from clip_guidance.rewards.load import REPOSITORIES


@dataclass(frozen=True)
class PromptScore:
    """Score an image against its own prompt, by a :class:`~clip_guidance.metrics.clip_score.ScoreDefinition`."""

    definition: ScoreDefinition
    needs_prompt = True

    @property
    def name(self) -> str:
        return self.definition.name

    def texts(self, prompt: str) -> list[str]:
        return [self.definition.prefix + prompt]

    def scores(self, clip: DualEncoder, image_embeds: Tensor, text_embeds: Tensor | None) -> Tensor:
        text_embeds = expect_texts(self.name, image_embeds, text_embeds, count=1)
        return self.definition.scores((image_embeds * text_embeds[:, 0]).sum(-1))

    def mean(self, scores: Tensor) -> float:
        return self.definition.mean(scores)

    def record(self, clip: DualEncoder) -> dict[str, Any]:
        return self.definition.record(clip)


Score: TypeAlias = ImageScore | ScoreDefinition | str


def get_image_score(score: Score) -> ImageScore:
    """Find a score by its name; a score is returned as it is.

    Args:
        score: "torchmetrics", "hessel", "cosine"; "sigmoid", by a SigLIP; "clip-iqa" or "clip-iqa:" and the name of a
            built-in pair, its first text, or two own texts with a slash between them; "aesthetic:" and the path of a
            head; a ``ScoreDefinition``; or any object that follows :class:`~clip_guidance.metrics.protocol.ImageScore`.

    Raises:
        ValueError: No score has this name.
        ModelError: The head cannot be read.

    Example:
        >>> import clip_guidance as cg
        >>> score = cg.get_image_score("clip-iqa:sharp/blurred")
        >>> score.name, score.needs_prompt, score.texts("")
        ('clip-iqa:sharp/blurred', False, ['sharp', 'blurred'])
    """
    if isinstance(score, ScoreDefinition):
        return PromptScore(score)
    if not isinstance(score, str):
        return score
    if score in DEFINITIONS:
        return PromptScore(DEFINITIONS[score])
    if score == PairProbability.name:
        return PairProbability()
    kind, _, rest = score.partition(":")
    if kind == "clip-iqa":
        return get_pair(rest or "quality")
    if kind == "aesthetic" and rest:
        return AestheticHead.from_file(rest)
    known = ", ".join([*DEFINITIONS, PairProbability.name, "clip-iqa[:PAIR]", "aesthetic:PATH.safetensors"])
    hint = ", and it is a reward: --reward, or load_reward" if score in REPOSITORIES else ""
    raise ValueError(f"no score {score!r}; there are {known}{hint}")


def score_images(
    clip: DualEncoder, images: Any, score: Score, prompts: str | Sequence[str] | None = None, batch_size: int = 64
) -> Tensor:
    """Score images that are in memory or few; each text is encoded once.

    For many images, resumable and shared among processes, see :mod:`clip_guidance.metrics.job`.

    Args:
        clip: The judge; not the CLIP that guided the images.
        images: Images, n of them, as for ``CLIP.encode_image``.
        score: A score or its name, as for :func:`get_image_score`.
        prompts: Texts, n of them, or one for all images; None where the score needs no prompt.
        batch_size: Images encoded at once; it changes speed and memory, not the scores.

    Returns:
        Scores (n,); ``score.mean(scores)`` is the number to report for all of them.

    Raises:
        ValueError: The score needs prompts and got none, or their number is neither 1 nor n.
        ImageError: An image cannot be read.

    Example:
        >>> import clip_guidance as cg
        >>> from PIL import Image
        >>> judge = cg.CLIP.from_pretrained("emoji-judge")
        >>> red = Image.new("RGB", (64, 64), "red")
        >>> cg.score_images(judge, [red, red], "hessel", "a red square").shape
        torch.Size([2])
    """
    clip, score, images = as_clip(clip), get_image_score(score), as_list(images)
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
