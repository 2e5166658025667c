"""Judges: a CLIP and the scores it gives, or a reward; pixels and prompts to numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clip_guidance.clip import DualEncoder, as_clip
from clip_guidance.clip.domain import DomainCheck
from clip_guidance.clip.image_processor import ImageProcessor
from clip_guidance.metrics.job.store import record_id
from clip_guidance.metrics.job.texts import EncodedText, LongPrompts, TextEncoder
from clip_guidance.metrics.protocol import Averaged
from clip_guidance.metrics.registry import Score, get_image_score


@dataclass(frozen=True)
class Definition:
    """Describe a score by one model.

    Attributes:
        score: What is computed; of a CLIP's judge an ``ImageScore``.
        record: Definition, model and preprocessing.
        id: Identifier of the record, see :func:`~clip_guidance.metrics.job.store.record_id`.
    """

    score: Averaged
    record: dict[str, Any]
    id: str


@dataclass(frozen=True)
class Scored:
    """Hold the score of an image by a definition.

    Attributes:
        score: The number; not finite where the model's output was not.
        tokens: Length of the longest text beside the image, None where there is no text.
        truncated: Whether a text was cut.
    """

    score: float
    tokens: int | None
    truncated: bool


class Judge(ABC):
    """Score images by a model and its definitions.

    Attributes:
        model: The model, ready for inference.
        fingerprint: Fingerprint of the weights in the precision they are stored in; it is compared with that of a
            guide.
        key: Key of the embeddings in a cache; another precision or another way of decoding has another key.
        embed_dim: Length of an embedding; None where it is no vector, and no cache keeps it.
        definitions: Definitions of the scores.
        domain: Count of the images that are unlike those that the model was trained on.
    """

    model: Any
    fingerprint: str
    key: str
    embed_dim: int | None
    definitions: list[Definition]
    domain: DomainCheck

    @property
    def image_processor(self) -> ImageProcessor:
        """Preprocessing of the images."""
        return self.model.image_processor

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @torch.no_grad()
    def encode(self, pixel_values: Sequence[Tensor]) -> Tensor:
        """Encode preprocessed images as what the scores depend on, (n, ...) in float32 on the model's device."""
        return self.look(torch.stack(list(pixel_values)).to(self.device))

    @abstractmethod
    def look(self, pixel_values: Tensor) -> Tensor:
        """Encode preprocessed images (n, 3, S, S) on the model's device."""

    @abstractmethod
    def score(self, definition: Definition, seen: Tensor, prompts: Sequence[str]) -> list[Scored]:
        """Score images, given as :meth:`encode` returns them, beside their prompts."""


class CLIPJudge(Judge):
    """Score images by a CLIP and any number of definitions; see :func:`make_judge`.

    Attributes:
        texts: Encoder of the texts.
    """

    def __init__(self, clip: DualEncoder, fingerprint: str, key: str, long_prompts: LongPrompts) -> None:
        self.model, self.fingerprint, self.key = clip, fingerprint, key
        self.embed_dim = clip.projection_dim
        self.definitions = []
        self.texts = TextEncoder(clip, long_prompts)

    def look(self, pixel_values: Tensor) -> Tensor:
        return self.model.image_embeds(pixel_values.to(self.model.dtype))

    def score(self, definition: Definition, seen: Tensor, prompts: Sequence[str]) -> list[Scored]:
        score: Any = definition.score
        texts = [score.texts(prompt) for prompt in prompts]
        encoded = self.texts([text for group in texts for text in group])
        beside = [[encoded[text] for text in group] for group in texts]
        with torch.no_grad():
            numbers = score.scores(self.model, seen, _stacked(beside)).tolist()
        return [
            Scored(number, max((text.tokens for text in group), default=None), any(text.truncated for text in group))
            for number, group in zip(numbers, beside, strict=True)
        ]


def make_judge(
    clip: DualEncoder,
    scores: Sequence[Score],
    long_prompts: LongPrompts = "truncate",
    dtype: torch.dtype | None = None,
    draft: bool = False,
) -> CLIPJudge:
    """Make a judge of a CLIP and the scores that it gives.

    Args:
        clip: The model, on its device.
        scores: Scores, or their names.
        long_prompts: "truncate", or "chunk-average", which appends its name to that of the definition.
        dtype: Precision that the model is converted to, in place; None keeps it. Vectors are normalised in float32 in
            any
            case.
        draft: Whether the images are decoded as drafts, which the record says.

    Raises:
        ValueError: There is no such score, or the CLIP cannot encode texts.
    """
    clip = as_clip(clip)
    fingerprint, domain = clip.fingerprint(), DomainCheck(clip)  # of the weights as they are stored
    if dtype is not None:
        clip.to(dtype=dtype)
    name = f"{fingerprint}-{str(clip.dtype).removeprefix('torch.')}{'-draft' * draft}"
    judge = CLIPJudge(clip, fingerprint, name, long_prompts)
    judge.domain = domain
    for score in map(get_image_score, scores):
        record = score.record(clip)
        if long_prompts == "chunk-average" and score.needs_prompt:
            record["definition"] += "+chunk-average"
        if draft:
            record["decode"] = "draft"
        judge.definitions.append(Definition(score, record, record_id(record)))
    judge.definitions = list({each.id: each for each in judge.definitions}.values())  # clip-iqa and clip-iqa:quality
    return judge


def _stacked(beside: list[list[EncodedText]]) -> Tensor | None:
    """Stack the texts' vectors to (n, k, d); None where k is 0."""
    if not beside or not beside[0]:
        return None
    return torch.stack([torch.stack([text.embed for text in group]) for group in beside])
