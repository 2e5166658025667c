"""The probability that image and text belong together, by a CLIP that was trained to say it.

SigLIP (Zhai et al. 2023, arXiv:2303.15343) was trained by one sigmoid per pair, so that

    sigmoid(exp(logit_scale) · cos(image, text) + logit_bias)

is such a probability. A CLIP without a bias was trained to compare texts, and says nothing of one alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from clip_guidance.clip import DualEncoder
from clip_guidance.metrics.clip_score import judge_record
from clip_guidance.metrics.protocol import expect_texts


class PairProbability:
    """Score an image by the probability that it belongs to its prompt; an ``ImageScore``.

    :meth:`scores` and :meth:`record` raise ``ValueError`` for a CLIP without a ``logit_bias``.

    Example:
        >>> import clip_guidance as cg
        >>> cg.get_image_score("sigmoid").name
        'sigmoid'
    """

    name = "sigmoid"
    needs_prompt = True

    def texts(self, prompt: str) -> list[str]:
        return [prompt]

    def scores(self, clip: DualEncoder, image_embeds: Tensor, text_embeds: Tensor | None) -> Tensor:
        _check(clip)
        text_embeds = expect_texts(self.name, image_embeds, text_embeds, count=1)
        return clip.logits((image_embeds * text_embeds[:, 0]).sum(-1)).detach().sigmoid()

    def mean(self, scores: Tensor) -> float:
        return scores.double().mean().item()

    def record(self, clip: DualEncoder) -> dict[str, Any]:
        _check(clip)
        return {"definition": self.name, **judge_record(clip)}


def _check(clip: DualEncoder) -> None:
    if clip.logit_bias is None:
        name = f"{clip.name_or_path or 'this CLIP'!s:.80}"
        raise ValueError(
            f"sigmoid: {name} has no logit_bias, since it was trained to compare texts and not to judge one alone; "
            "expected a SigLIP or its like"
        )
