"""Zero-shot classification: which of these labels describes the picture best?

A label c becomes one vector, the mean over prompt templates t of its text embeddings (Radford et al. 2021,
arXiv:2103.00020, section 3.1.4), and a picture's logits are its scaled cosines with these vectors:

    w_c = norm(mean_t norm(f(t(c))))      logit_c = exp(logit_scale) · cos(image, w_c)     p = softmax(logit)

The probabilities are relative to the labels offered: a picture of none of them still gets a sum of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from clip_guidance.clip import CLIP

DEFAULT_TEMPLATES = ("{}", "a {}", "a picture of a {}", "a photo of a {}", "a drawing of a {}")


@dataclass(frozen=True)
class Prediction:
    """One label and its probability."""

    label: str
    prob: float


@dataclass(frozen=True)
class ZeroShotResult:
    """What ``ZeroShotClassifier`` says about n pictures and L labels.

    Attributes:
        labels: the L labels, in the order given.
        logits: (n, L), exp(logit_scale) · cosine.
        probs: (n, L), softmax of the logits over the labels.
    """

    labels: tuple[str, ...]
    logits: torch.Tensor
    probs: torch.Tensor

    def __len__(self) -> int:
        return len(self.probs)

    def top(self, k: int = 1) -> list[list[Prediction]]:
        """The k likeliest labels of each picture, best first; all of them if there are fewer than k.

        Raises:
            ValueError: k is below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        best = self.probs.topk(min(k, len(self.labels)))
        return [
            [Prediction(self.labels[index], prob) for index, prob in zip(indices, probs, strict=True)]
            for indices, probs in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def rows(self, k: int = 5) -> list[dict[str, Any]]:
        """One dictionary a picture, fit for JSON: ``label``, ``prob`` and the ``top`` k."""
        return [
            {"label": top[0].label, "prob": top[0].prob, "top": [vars(prediction) for prediction in top]}
            for top in self.top(k)
        ]


class ZeroShotClassifier:
    """Classifies pictures among labels that are given as text; the label vectors are computed once.

    Args:
        clip: the model.
        labels: what to choose from, without repetition.
        templates: sentences with ``{}`` where the label goes; several are averaged.
        batch_size: texts encoded at once.

    Attributes:
        class_embeds: (L, d) unit vectors.

    Raises:
        ValueError: a label is empty or repeated, or a template has no ``{}``.
    """

    def __init__(
        self,
        clip: CLIP,
        labels: Sequence[str],
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        batch_size: int = 256,
    ) -> None:
        self.clip = clip
        self.labels = _checked_labels(labels)
        self.templates = _checked_templates(templates)
        texts = [template.replace("{}", label) for label in self.labels for template in self.templates]
        embeds = F.normalize(clip.encode_text(texts, batch_size=batch_size), dim=-1)
        per_label = embeds.view(len(self.labels), len(self.templates), -1)
        self.class_embeds = F.normalize(per_label.mean(dim=1), dim=-1)

    def __call__(self, images: Any, batch_size: int = 64) -> ZeroShotResult:
        """Classifies pictures.

        Args:
            images: one picture or several, as for ``CLIP.encode_image``.
            batch_size: pictures encoded at once.

        Raises:
            ImageError: a picture cannot be read.
        """
        return self.classify_embeds(self.clip.encode_image(images, batch_size=batch_size))

    @torch.no_grad()
    def classify_embeds(self, image_embeds: torch.Tensor) -> ZeroShotResult:
        """Classifies pictures that are already encoded, (n, d)."""
        cosines = F.normalize(image_embeds.float(), dim=-1) @ self.class_embeds.T
        logits = self.clip.logit_scale.float().exp() * cosines
        return ZeroShotResult(self.labels, logits, logits.softmax(dim=-1))


def _checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str):
        raise ValueError(f"labels must be a list of strings, got the string {labels!r}")
    stripped = tuple(label.strip() for label in labels)
    if not stripped:
        raise ValueError("expected at least one label, got none")
    seen: set[str] = set()
    for position, label in enumerate(stripped):
        if not label:
            raise ValueError(f"label {position} is empty")
        if label in seen:
            raise ValueError(f"label {label!r} is given twice")
        seen.add(label)
    return stripped


def _checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    templates = (templates,) if isinstance(templates, str) else tuple(templates)
    if not templates:
        raise ValueError("expected at least one template, got none")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"template {template!r} has no {{}} for the label")
    return templates
