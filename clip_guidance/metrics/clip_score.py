"""CLIP scores: how well images match texts, each score with its definition written down.

"CLIPScore" alone names at least two numbers, one around 0.7 and one around 30. Every score here follows a
``ScoreDefinition``, whose ``record`` goes wherever the score goes:

    hessel        2.5 · max(cos(I, "A photo depicts " + c), 0)       mean over images
    torchmetrics  100 · cos(I, c)                                    max(mean over images, 0)
    cosine        cos(I, c)                                          mean over images

Sources: Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", equations 1
and 2; torchmetrics' ``CLIPScore``; Gal et al. 2022, "StyleGAN-NADA", equation 3 (directional similarity).

The CLIP that guided an image cannot judge it: score with another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F

from clip_guidance.clip import DualEncoder, as_clip
from clip_guidance.images.load import as_list


@dataclass(frozen=True)
class ScoreDefinition:
    """Define what exactly a score computes.

    Attributes:
        name: Name of the score.
        weight: Factor on the cosine.
        prefix: Text put before every text, and before every reference.
        clip: Where negative values become zero: in "each" score, in the "mean" only, or "never".
    """

    name: str
    weight: float = 1.0
    prefix: str = ""
    clip: Literal["each", "mean", "never"] = "never"

    def __post_init__(self) -> None:
        if self.clip not in ("each", "mean", "never"):
            raise ValueError(f"clip must be 'each', 'mean' or 'never', got {self.clip!r}")

    def scores(self, cosines: torch.Tensor) -> torch.Tensor:
        """Turn cosines into scores of the same shape."""
        scores = self.weight * cosines
        return scores.clamp(min=0) if self.clip == "each" else scores

    def mean(self, scores: torch.Tensor) -> float:
        """Average many scores in float64, as the definition says."""
        mean = scores.double().mean().item()
        return max(mean, 0.0) if self.clip == "mean" else mean

    def record(self, clip: DualEncoder) -> dict[str, Any]:
        """Return all that is needed to compute the same number again: definition, model and preprocessing."""
        return {
            "definition": self.name,
            "weight": self.weight,
            "prefix": self.prefix,
            "clip": self.clip,
            **judge_record(clip),
        }


def judge_record(clip: DualEncoder) -> dict[str, Any]:
    """Record which CLIP judges, in which precision, and what it sees of an image and a text."""
    return {
        "model": str(clip.name_or_path),
        "fingerprint": clip.fingerprint(),
        "dtype": str(clip.dtype).removeprefix("torch."),
        "preprocessing": clip.image_processor.record(),
        "context_length": getattr(clip.tokenizer, "model_max_length", None),
    }


HESSEL = ScoreDefinition("hessel", weight=2.5, prefix="A photo depicts ", clip="each")
TORCHMETRICS = ScoreDefinition("torchmetrics", weight=100.0, clip="mean")
COSINE = ScoreDefinition("cosine")
DEFINITIONS = {definition.name: definition for definition in (HESSEL, TORCHMETRICS, COSINE)}

Definition: TypeAlias = ScoreDefinition | str


def get_definition(definition: Definition) -> ScoreDefinition:
    """Find a definition by its name; a definition is returned as it is.

    Raises:
        ValueError: No definition has this name.
    """
    if isinstance(definition, ScoreDefinition):
        return definition
    if definition not in DEFINITIONS:
        raise ValueError(f"no score definition {definition!r}; there are {', '.join(DEFINITIONS)}")
    return DEFINITIONS[definition]


def clip_score(
    clip: DualEncoder,
    images: Any,
    prompts: str | Sequence[str],
    definition: Definition = TORCHMETRICS,
    batch_size: int = 64,
) -> torch.Tensor:
    """Score how well each image matches its text.

    Args:
        clip: The judge; not the CLIP that guided the images.
        images: Images, n of them, as for ``CLIP.encode_image``.
        prompts: Texts, n of them, or one for all images. A text that is too long is cut, keeping its end-of-text token.
        definition: "torchmetrics" (100 · cos, the default), "hessel", "cosine", or your own ``ScoreDefinition``.
        batch_size: Images encoded at once; it changes speed and memory, not the scores.

    Returns:
        Scores (n,); ``definition.mean(scores)`` is the number to report for all of them.

    Raises:
        ValueError: The number of texts is neither 1 nor n, or a text is empty.
        ImageError: An image cannot be read.

    Example:
        >>> import clip_guidance as cg
        >>> from PIL import Image
        >>> judge = cg.CLIP.from_pretrained("emoji-judge")
        >>> red = Image.new("RGB", (64, 64), "red")
        >>> scores = cg.clip_score(judge, [red, red], ["a red square", "a blue fish"], "cosine")
        >>> scores.shape, bool(scores[0] > scores[1])
        (torch.Size([2]), True)
    """
    clip, definition, images = as_clip(clip), get_definition(definition), as_list(images)
    text_embeds = clip.encode_text(_with_prefix(definition, prompts, len(images)))
    return definition.scores(_cosine(clip.encode_image(images, batch_size=batch_size), text_embeds))


def ref_clip_score(
    clip: DualEncoder,
    images: Any,
    prompts: str | Sequence[str],
    references: Sequence[str | Sequence[str]],
    definition: Definition = HESSEL,
    batch_size: int = 64,
) -> torch.Tensor:
    """Score images by RefCLIPScore, which also compares each text with reference texts.

    Hessel et al. 2021, equation 2: with s the clip score and r = max(max_j cos(text, reference_j), 0), the score is
    2sr / (s + r).

    Args:
        clip: The judge.
        images: Images, n of them, as for ``CLIP.encode_image``.
        prompts: Texts, n of them, or one for all images.
        references: For each image one or more reference texts.
        definition: Definition of s; the published one is "hessel".
        batch_size: Images encoded at once; it changes speed and memory, not the scores.

    Returns:
        Scores (n,); 0 where s + r is 0.

    Raises:
        ValueError: The lengths differ, a text is empty, or an image has no reference.
        ImageError: An image cannot be read.

    Example:
        >>> import clip_guidance as cg
        >>> from PIL import Image
        >>> judge = cg.CLIP.from_pretrained("emoji-judge")
        >>> red = Image.new("RGB", (64, 64), "red")
        >>> cg.ref_clip_score(judge, [red], "a red square", [["a red box", "a square"]]).shape
        torch.Size([1])
    """
    clip, definition, images = as_clip(clip), get_definition(definition), as_list(images)
    texts = _with_prefix(definition, prompts, len(images))
    groups = [[group] if isinstance(group, str) else list(group) for group in references]
    if len(groups) != len(images):
        raise ValueError(f"expected references for each of {len(images)} images, got {len(groups)}")
    if empty := [i for i, group in enumerate(groups) if not group]:
        raise ValueError(f"image {empty[0]} has no reference text")

    text_embeds = clip.encode_text(texts).expand(len(images), -1)
    reference_embeds = clip.encode_text([definition.prefix + text for group in groups for text in group])
    of_each = reference_embeds.split([len(group) for group in groups])
    s = definition.scores(_cosine(clip.encode_image(images, batch_size=batch_size), text_embeds)).clamp(min=0)
    r = torch.stack([(refs @ text).max() for refs, text in zip(of_each, text_embeds, strict=True)]).clamp(min=0)
    return (2 * s * r / (s + r)).nan_to_num(0.0)  # 0 / 0 where nothing agrees


def directional_similarity(
    clip: DualEncoder,
    images_before: Any,
    images_after: Any,
    prompts_before: str | Sequence[str],
    prompts_after: str | Sequence[str],
    batch_size: int = 64,
) -> torch.Tensor:
    """Measure whether an edit changes the image the way it changes the text.

    The score is cos(Δ image embedding, Δ text embedding), Gal et al. 2022, equation 3.

    Args:
        clip: The judge.
        images_before: Images, n of them, as for ``CLIP.encode_image``.
        images_after: The same images, edited.
        prompts_before: Texts, n of them, or one for all images.
        prompts_after: Texts, n of them, or one for all images.
        batch_size: Images encoded at once; it changes speed and memory, not the scores.

    Returns:
        Cosines (n,) in [-1, 1]; 0 where an image or its text did not change.

    Raises:
        ValueError: The lengths differ, or a text is empty.
        ImageError: An image cannot be read.

    Example:
        >>> import clip_guidance as cg
        >>> from PIL import Image
        >>> judge = cg.CLIP.from_pretrained("emoji-judge")
        >>> red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
        >>> cg.directional_similarity(judge, [red], [red], "a red square", "a blue square")  # nothing was edited
        tensor([0.])
        >>> bool(cg.directional_similarity(judge, [red], [blue], "a red square", "a blue square") > 0)
        True
    """
    clip, before, after = as_clip(clip), as_list(images_before), as_list(images_after)
    if len(before) != len(after):
        raise ValueError(f"got {len(before)} images before and {len(after)} after the edit")
    texts = [clip.encode_text(_with_prefix(COSINE, p, len(before))) for p in (prompts_before, prompts_after)]
    embeds = [clip.encode_image(part, batch_size=batch_size) for part in (before, after)]
    return _cosine(embeds[1] - embeds[0], texts[1] - texts[0])


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute the cosine of each pair; 0 where a vector is mere rounding, like the difference of equal ones."""
    return (F.normalize(a.float(), dim=-1, eps=1e-5) * F.normalize(b.float(), dim=-1, eps=1e-5)).sum(dim=-1)


def _with_prefix(definition: ScoreDefinition, prompts: str | Sequence[str], count: int) -> list[str]:
    """Return the n texts to encode, or the one that all images share."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if len(texts) not in (1, count):
        raise ValueError(f"expected one text, or one for each of {count} images, got {len(texts)} texts")
    if empty := [i for i, text in enumerate(texts) if not text.strip()]:
        raise ValueError(f"text {empty[0]} is empty")
    return [definition.prefix + text for text in texts]
