"""Zero-shot classification: which of these labels describes the image best?

A label c becomes one vector, the mean over prompt templates t of its text embeddings (Radford et al. 2021,
arXiv:2103.00020, section 3.1.4), and an image's logits are its scaled cosines with these vectors:

    w_c = norm(mean_t norm(f(t(c))))      logit_c = exp(logit_scale) · cos(image, w_c)     p = softmax(logit)

The probabilities are relative to the labels offered: an image of none of them still gets a sum of one. Where several
labels, or none, may hold at once, each label is compared by itself with texts that fit any image (a pair of prompts):

    p_c = softmax(logit_c, logit_any)_0 = sigmoid(logit_c − logit_any)

A CLIP with a ``logit_bias``, such as SigLIP, was trained to say this of each pair by itself: for it, p_c is
sigmoid(logit_c) in any case, and the probabilities of an image sum to anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from clip_guidance._display import DisplayMixin
from clip_guidance.clip import DualEncoder, as_clip
from clip_guidance.metrics.classification import fit_temperature
from clip_guidance.zero_shot.templates import DEFAULT_ANY, DEFAULT_TEMPLATES, Template

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Prediction:
    """Hold one label and its probability.

    Attributes:
        label: The label, as it was given to the classifier.
        prob: Probability, in [0, 1].

    Example:
        >>> from clip_guidance.zero_shot import Prediction
        >>> best = max(Prediction("cat", 0.75), Prediction("dog", 0.25), key=lambda prediction: prediction.prob)
        >>> f"{best.label} {best.prob:.0%}"
        'cat 75%'
    """

    label: str
    prob: float


@dataclass(frozen=True)
class ZeroShotResult(DisplayMixin):
    """Hold what ``ZeroShotClassifier`` says about n images and L labels; a notebook shows it as bars.

    Attributes:
        labels: The L labels, in the order given.
        logits: Logits (n, L), (exp(logit_scale) · cosine + logit_bias) / temperature; less that of any image where
            ``multi_label`` and there is no bias.
        probs: Probabilities (n, L): softmax of the logits over the labels; sigmoid of each where ``multi_label``, and
            by a CLIP with a ``logit_bias``.
        multi_label: Whether several labels, or none, may hold at once.

    Example:
        >>> import clip_guidance as cg
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, 1.0]])
        >>> result = cg.ZeroShotResult(("cat", "dog", "fox"), logits, logits.softmax(-1))
        >>> [entry.label for entry in result.top(2)[0]]
        ['cat', 'fox']
    """

    labels: tuple[str, ...]
    logits: torch.Tensor
    probs: torch.Tensor
    multi_label: bool = False

    def __len__(self) -> int:
        return len(self.probs)

    def top(self, k: int = 1) -> list[list[Prediction]]:
        """List the k likeliest labels of each image, best first; all labels if there are fewer than k.

        Raises:
            ValueError: ``k`` is below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        best = self.probs.topk(min(k, len(self.labels)))
        return [
            [Prediction(self.labels[index], prob) for index, prob in zip(indices, probs, strict=True)]
            for indices, probs in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def above(self, threshold: float = 0.5) -> list[list[Prediction]]:
        """List the labels of each image that are at least this likely, best first; none where no label is."""
        return [[entry for entry in top if entry.prob >= threshold] for top in self.top(len(self.labels))]

    def rows(self, k: int = 5, threshold: float = 0.0) -> list[dict[str, Any]]:
        """Make one dictionary per image, fit for JSON: ``label``, ``prob``, and ``top``, the k likeliest labels.

        ``label`` is None where the likeliest label is below ``threshold``: the classifier abstains. ``labels``, all
        that
        reach the threshold, are added where several may hold.
        """
        rows = []
        for top, above in zip(self.top(k), self.above(threshold), strict=True):
            label = top[0].label if top[0].prob >= threshold else None
            row = {"label": label, "prob": top[0].prob, "top": [vars(prediction) for prediction in top]}
            rows.append(row | ({"labels": [entry.label for entry in above]} if self.multi_label else {}))
        return rows

    @classmethod
    def cat(cls, results: Sequence[ZeroShotResult]) -> ZeroShotResult:
        """Join the results of several batches of images, on the CPU.

        Raises:
            ValueError: There is no result, or the results are of different labels.
        """
        kinds = {(result.labels, result.multi_label) for result in results}
        if len(kinds) != 1:
            raise ValueError(f"expected results of one classifier, got those of {len(kinds)}")
        logits, probs = (torch.cat([getattr(each, of).cpu() for each in results]) for of in ("logits", "probs"))
        return cls(results[0].labels, logits, probs, results[0].multi_label)

    def plot(self, images: Any = None, k: int = 5) -> Figure:
        """Draw the likeliest labels of each image as bars, beside the image.

        Args:
            images: The n images, as for ``CLIP.encode_image``; without them only the bars are drawn.
            k: Labels shown for each image.

        Returns:
            A matplotlib figure.

        Raises:
            ImportError: Matplotlib (the extra ``plot``) is not installed.
            ImageError: An image cannot be read.
            ValueError: There is no image, or not as many images as results.
        """
        return self._plot(images, k)


class ZeroShotClassifier:
    """Classify images among labels that are given as text; the label vectors are computed once.

    Args:
        clip: The model.
        labels: Labels to choose from, without repetition.
        templates: Sentences with ``{}`` or ``{c}`` where the label goes, or functions of the label, which is what the
            published lists of templates hold; the vectors of several templates are averaged.
        batch_size: Texts encoded at once; it changes speed and memory, not the vectors.
        multi_label: Whether several labels, or none, may hold at once.
        any_image: Where ``multi_label``: texts that fit any image, averaged; or templates, for texts that fit any image
            but the label's ("an image without a {}"). A CLIP with a ``logit_bias`` needs none, and reads none.
        temperature: What the logits are divided by, above 0: a higher one makes the probabilities less sure, and leaves
            the order of the labels; see :meth:`calibrate`.

    Attributes:
        class_embeds: Unit vectors of the labels (L, d).

    Raises:
        ValueError: A label is empty or repeated, a template has no place for it, or the temperature is not above 0.

    Example:
        >>> import clip_guidance as cg
        >>> from PIL import Image
        >>> clip = cg.CLIP.from_pretrained("emoji")
        >>> classifier = cg.ZeroShotClassifier(clip, ["red square", "blue square"])
        >>> result = classifier([Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")])
        >>> [row["label"] for row in result.rows()]
        ['red square', 'blue square']
    """

    def __init__(
        self,
        clip: DualEncoder,
        labels: Sequence[str],
        templates: Template | Sequence[Template] = DEFAULT_TEMPLATES,
        batch_size: int = 256,
        *,
        multi_label: bool = False,
        any_image: Sequence[Template] = DEFAULT_ANY,
        temperature: float = 1.0,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.clip = as_clip(clip)
        self.batch_size, self.temperature, self.multi_label = batch_size, temperature, multi_label
        self.labels = _checked_labels(labels)
        self.templates = _checked_templates(templates)
        self.class_embeds = self._embeds(self.templates)
        self.any_embeds = self._embeds(tuple(any_image)) if multi_label and self.clip.logit_bias is None else None

    def __call__(self, images: Any, batch_size: int = 64) -> ZeroShotResult:
        """Classify images.

        Args:
            images: One image or several, as for ``CLIP.encode_image``.
            batch_size: Images encoded at once; it changes speed and memory, not the result.

        Raises:
            ImageError: An image cannot be read.
        """
        return self.classify_embeds(self.clip.encode_image(images, batch_size=batch_size))

    @torch.no_grad()
    def classify_embeds(self, image_embeds: torch.Tensor) -> ZeroShotResult:
        """Classify images that are already encoded, (n, d).

        Raises:
            ValueError: An embedding is not finite: the weights are damaged, or overflow in their precision.
        """
        if bad := (~image_embeds.isfinite().all(-1)).nonzero().flatten().tolist():
            raise ValueError(f"{self.clip.name_or_path}: its embedding of image {bad[0]} is not finite")
        images = F.normalize(image_embeds.float(), dim=-1)
        cosines = images @ self.class_embeds.T
        if self.any_embeds is not None:
            cosines = cosines - images @ self.any_embeds.T
        logits = self.clip.logits(cosines) / self.temperature
        each_alone = self.multi_label or self.clip.logit_bias is not None
        probs = logits.sigmoid() if each_alone else logits.softmax(dim=-1)
        return ZeroShotResult(self.labels, logits, probs, self.multi_label)

    def calibrate(self, images: Any, labels: Sequence[str]) -> float:
        """Set the temperature so that the probabilities fit a labelled sample, and return it.

        The likeliest label does not change; how sure the classifier is of it does.

        Args:
            images: Images as for ``CLIP.encode_image``; some ten are enough.
            labels: The right label of each image.

        Raises:
            ValueError: Several labels may hold at once, a label is unknown, or no temperature fits; the message says
                why.
        """
        if self.multi_label:
            raise ValueError("expected a classifier of one label per image to calibrate, got multi_label=True")
        if self.clip.logit_bias is not None:
            raise ValueError("a CLIP with a logit_bias gives each label a probability of its own: nothing to calibrate")
        targets = self.numbers(labels)
        logits = self(images).logits.cpu() * self.temperature
        if len(logits) != len(targets):
            raise ValueError(f"expected one label per image, got {len(targets)} labels and {len(logits)} images")
        self.temperature = fit_temperature(logits, targets)
        return self.temperature

    def numbers(self, labels: Sequence[str]) -> torch.Tensor:
        """Return the numbers of labels among those of the classifier, int64 (n,).

        Raises:
            ValueError: A label is none of the classifier's.
        """
        places = {label: place for place, label in enumerate(self.labels)}
        if unknown := sorted({label for label in labels if label.strip() not in places}):
            raise ValueError(f"unknown labels {unknown[:5]}; the classifier knows {', '.join(self.labels[:10])}")
        return torch.tensor([places[label.strip()] for label in labels], dtype=torch.long)

    def _embeds(self, templates: Sequence[Template]) -> torch.Tensor:
        """Return the direction of the mean over templates of each label's sentences, (L, d)."""
        texts = [_sentence(template, label) for label in self.labels for template in templates]
        embeds = F.normalize(self.clip.encode_text(texts, batch_size=self.batch_size), dim=-1)
        return F.normalize(embeds.view(len(self.labels), len(templates), -1).mean(dim=1), dim=-1)


def _sentence(template: Template, label: str) -> str:
    if callable(template):
        return template(label)
    return template.replace("{c}", label) if "{c}" in template else template.replace("{}", label)


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


def _checked_templates(templates: Template | Sequence[Template]) -> tuple[Template, ...]:
    templates = (templates,) if isinstance(templates, str) or callable(templates) else tuple(templates)
    if not templates:
        raise ValueError("expected at least one template, got none")
    for template in templates:
        if not callable(template) and "{}" not in template and "{c}" not in template:
            raise ValueError(f"template {template!r} has no {{}} for the label")
    return templates
