"""A CLIP and the scores it gives: pixels and prompts to numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clip_guidance.clip import DualEncoder, as_clip
from clip_guidance.clip.domain import DomainCheck
from clip_guidance.metrics.job.store import record_id
from clip_guidance.metrics.job.texts import EncodedText, LongPrompts, TextEncoder
from clip_guidance.metrics.protocol import ImageScore
from clip_guidance.metrics.registry import Score, get_image_score


@dataclass(frozen=True)
class Definition:
    """Describe a score by one CLIP.

    Attributes:
        score: What is computed.
        record: Definition, model and preprocessing.
        id: Identifier of the record, see :func:`~clip_guidance.metrics.job.store.record_id`.
    """

    score: ImageScore
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


@dataclass
class Judge:
    """Score images by a CLIP and its definitions; see :func:`make_judge`.

    Attributes:
        clip: The model, ready for inference.
        fingerprint: Fingerprint of the weights in the precision they are stored in; it is compared with that of a
            guide.
        key: Key of the embeddings in a cache; another precision or another way of decoding has another key.
        definitions: Definitions of the scores.
        texts: Encoder of the texts.
        domain: Count of the images that are unlike those that the CLIP was trained on.
    """

    clip: DualEncoder
    fingerprint: str
    key: str
    definitions: list[Definition] = field(default_factory=list)
    texts: TextEncoder = field(init=False)
    domain: DomainCheck = field(init=False)

    def encode(self, pixel_values: Sequence[Tensor]) -> Tensor:
        """Encode preprocessed images to unit vectors (n, d), float32 on the model's device."""
        with torch.no_grad():
            return self.clip.image_embeds(torch.stack(list(pixel_values)).to(self.clip.device, self.clip.dtype))

    def score(self, definition: Definition, image_embeds: Tensor, prompts: Sequence[str]) -> list[Scored]:
        """Score images, given as unit vectors (n, d), beside their prompts."""
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
    clip: DualEncoder,
    scores: Sequence[Score],
    long_prompts: LongPrompts = "truncate",
    dtype: torch.dtype | None = None,
    draft: bool = False,
) -> Judge:
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
    judge = Judge(clip, fingerprint, name)
    judge.texts, judge.domain = TextEncoder(clip, long_prompts), domain
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
