"""CLIP-IQA, quality without a reference: is an image nearer to "Good photo." or to "Bad photo."?

Wang et al. 2023, "Exploring CLIP for Assessing the Look and Feel of Images" (CLIP-IQA, arXiv:2207.12396), antonym
prompt pairing:

    score = softmax(100 · cos(I, positive), 100 · cos(I, negative))₀        in (0, 1)

The published numbers come from one network, OpenAI's ResNet-50 *without* its positional embedding, on images in their
own size. Here images are resized to the CLIP's input, and a ViT keeps its positional embedding, which the record says.
Neither number can be compared with the published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clip_guidance.clip import DualEncoder, as_clip
from clip_guidance.images.load import as_list
from clip_guidance.metrics.clip_score import judge_record
from clip_guidance.metrics.protocol import expect_texts

PAIRS = {  # with the names and texts of torchmetrics, which extends the paper's
    "quality": ("Good photo.", "Bad photo."),
    "brightness": ("Bright photo.", "Dark photo."),
    "noisiness": ("Clean photo.", "Noisy photo."),
    "colorfullness": ("Colorful photo.", "Dull photo."),
    "sharpness": ("Sharp photo.", "Blurry photo."),
    "contrast": ("High contrast photo.", "Low contrast photo."),
    "complexity": ("Complex photo.", "Simple photo."),
    "natural": ("Natural photo.", "Synthetic photo."),
    "happy": ("Happy photo.", "Sad photo."),
    "scary": ("Scary photo.", "Peaceful photo."),
    "new": ("New photo.", "Old photo."),
    "warm": ("Warm photo.", "Cold photo."),
    "real": ("Real photo.", "Abstract photo."),
    "beautiful": ("Beautiful photo.", "Ugly photo."),
    "lonely": ("Lonely photo.", "Sociable photo."),
    "relaxing": ("Relaxing photo.", "Stressful photo."),
}


@dataclass(frozen=True)
class PromptPair:
    """Score the share of an image that goes to the first of two opposite texts; an ``ImageScore``.

    Args:
        name: Name of the score, "clip-iqa:" and the pair.
        positive: The text that a score of 1 means.
        negative: The text that a score of 0 means.
        logit_scale: Factor on the cosines; 100 in every published form, whatever the CLIP's own.
    """

    name: str
    positive: str
    negative: str
    logit_scale: float = 100.0
    needs_prompt = False

    def texts(self, prompt: str = "") -> list[str]:
        return [self.positive, self.negative]

    def scores(self, clip: DualEncoder, image_embeds: Tensor, text_embeds: Tensor | None) -> Tensor:
        text_embeds = expect_texts(self.name, image_embeds, text_embeds, count=2)
        cosines = (image_embeds[:, None] * text_embeds).sum(-1)
        return (self.logit_scale * cosines).softmax(-1)[:, 0]

    def mean(self, scores: Tensor) -> float:
        return scores.double().mean().item()

    def record(self, clip: DualEncoder) -> dict[str, Any]:
        positions = any("position" in name for name, _ in clip.image_encoder.named_parameters())
        return {
            "definition": self.name,
            "positional_embedding": positions,
            "positive": self.positive,
            "negative": self.negative,
            "logit_scale": self.logit_scale,
            **judge_record(clip),
        }


def get_pair(pair: str) -> PromptPair:
    """Find a built-in pair by its name or its first text, or make one of two texts.

    Args:
        pair: A name ("quality"), a first text ("good photo"), or two own texts with a slash between them:
            "sharp/blurred".

    Raises:
        ValueError: There is no such pair.
    """
    positive, slash, negative = (part.strip() for part in pair.partition("/"))
    if slash and positive and negative:
        return PromptPair(f"clip-iqa:{positive}/{negative}", positive, negative)
    wanted = pair.lower().rstrip(".")
    for name, texts in PAIRS.items():
        if wanted in (name, texts[0].lower().rstrip(".")):
            return PromptPair(f"clip-iqa:{name}", *texts)
    raise ValueError(f"no CLIP-IQA pair {pair!r}; there are {', '.join(PAIRS)}, or two texts with a slash between them")


def clip_iqa(
    clip: DualEncoder, images: Any, pairs: Sequence[str] = ("quality",), batch_size: int = 64
) -> dict[str, Tensor]:
    """Score images by pairs of opposite texts (CLIP-IQA); each image is encoded once for all pairs.

    Args:
        clip: The judge.
        images: Images, n of them, as for ``CLIP.encode_image``.
        pairs: Names of built-in pairs, or own pairs such as "sharp art/blurred art"; see :func:`get_pair`.
        batch_size: Images encoded at once; it changes speed and memory, not the scores.

    Returns:
        For each pair, as it was given, scores (n,) in [0, 1].

    Raises:
        ValueError: There is no such pair.
        ImageError: An image cannot be read.

    Example:
        >>> import clip_guidance as cg
        >>> from PIL import Image
        >>> clip = cg.CLIP.from_pretrained("emoji")
        >>> found = cg.clip_iqa(clip, [Image.new("RGB", (64, 64), "red")], ["quality", "red/blue"])
        >>> found["red/blue"].shape, bool(found["red/blue"] > 0.5)
        (torch.Size([1]), True)
    """
    clip, found = as_clip(clip), {pair: get_pair(pair) for pair in pairs}
    image_embeds = clip.encode_image(as_list(images), batch_size=batch_size)

    def scores(pair: PromptPair) -> Tensor:
        return pair.scores(clip, image_embeds, clip.encode_text(pair.texts()).expand(len(image_embeds), -1, -1))

    return {name: scores(pair) for name, pair in found.items()}
