"""A CLIP and the scores it gives: pixels and prompts to numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clip_guidance.metrics.job.store import record_id
from clip_guidance.metrics.job.texts import EncodedText, LongPrompts, TextEncoder
from clip_guidance.metrics.protocol import ImageScore
from clip_guidance.metrics.registry import Score, get_image_score

if TYPE_CHECKING:
    from clip_guidance.clip import CLIP


@dataclass(frozen=True)
class Definition:
    """A score by one CLIP.

    Attributes:
        score: what is computed.
        record: definition, model, preprocessing.
        id: of the record.
    """

    score: ImageScore
    record: dict[str, Any]
    id: str


@dataclass(frozen=True)
class Scored:
    """The score of an image by a definition.

    Attributes:
        score: the number; not finite where the model's output was not.
        tokens: of the longest text beside it, None where there is none.
        truncated: whether a text was cut.
    """

    score: float
    tokens: int | None
    truncated: bool


@dataclass
class Judge:
    """A CLIP with its definitions; see :func:`make_judge`.

    Attributes:
        clip: the model, ready for inference.
        fingerprint: that its weights had in the precision they are stored in: what a guide is compared with.
        key: of its embeddings: those of another precision or way of reading are others.
        definitions: of its scores.
        texts: its encoder of texts.
    """

    clip: CLIP
    fingerprint: str
    key: str
    definitions: list[Definition] = field(default_factory=list)
    texts: TextEncoder = field(init=False)

    def encode(self, pixel_values: Sequence[Tensor]) -> Tensor:
        """Preprocessed images to unit vectors (n, d), float32 on the model's device."""
        with torch.no_grad():
            return self.clip.image_embeds(torch.stack(list(pixel_values)).to(self.clip.device, self.clip.dtype))

    def score(self, definition: Definition, image_embeds: Tensor, prompts: Sequence[str]) -> list[Scored]:
        """The scores of images (n, d) beside their prompts."""
        score = definition.score
        texts = [score.texts(prompt) for prompt in prompts]
        encoded = self.texts([text for group in texts for text in group])
        beside = [[encoded[text] for text in group] for group in texts]
        with torch.no_grad():
            numbers = score.scores(self.clip, image_embeds, _stacked(beside)).tolist()
        return [
            Scored(number, max((text.tokens for text in group), default=None), any(text.truncated for text in group))
            for number, group in zip(numbers, beside, strict=True)
        ]


def make_judge(
    clip: CLIP,
    scores: Sequence[Score],
    long_prompts: LongPrompts = "truncate",
    dtype: torch.dtype | None = None,
    draft: bool = False,
) -> Judge:
    """A CLIP that gives these scores.

    Args:
        clip: the model, on its device.
        scores: each of them, or its name.
        long_prompts: "truncate", or "chunk-average", which appends its name to that of the definition.
        dtype: what the model is converted to, in place. Vectors are normalised in float32 in any case.
        draft: whether the images are read as drafts, which the record tells.

    Raises:
        ValueError: there is no such score, or the CLIP cannot encode texts.
    """
    fingerprint = clip.fingerprint()
    if dtype is not None:
        clip.to(dtype=dtype)
    name = f"{fingerprint}-{str(clip.dtype).removeprefix('torch.')}{'-draft' * draft}"
    judge = Judge(clip, fingerprint, name)
    judge.texts = TextEncoder(clip, long_prompts)
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
    """The texts' vectors (n, k, d), None where k is 0."""
    if not beside or not beside[0]:
        return None
    return torch.stack([torch.stack([text.embed for text in group]) for group in beside])
