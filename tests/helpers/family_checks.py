"""What works with a dual encoder of transformers, found by trying: against the library's class on the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import clip_guidance as cg
from helpers.factories.families import FAMILIES

TEXTS = ["a red apple", "A Green apple on a table", "a photo of a cat"]
FIXED = ("siglip", "siglip2")  # the library's processors pad their texts to one length


def photo(size: tuple[int, int] = (56, 40), phase: float = 0.0) -> Image.Image:
    """Smooth, with an edge: of noise, the 8 bits of PIL's two passes would be the whole difference."""
    x, y = np.meshgrid(np.linspace(0, 3, size[0]), np.linspace(0, 2, size[1]))
    array = np.stack([np.sin(x + y + phase) * 100 + 128, np.where(x > y, 220, 30), np.cos(3 * x) * 90 + 120], -1)
    return Image.fromarray(array.astype(np.uint8))


@dataclass(frozen=True)
class Found:
    """What a family does.

    Attributes:
        text, image, logits, gradient: Largest difference from the library, of unit vectors, of logits over their
            scale, and of the gradient at the image tower's input over its largest element.
        preprocessed: The same of the image form, and ``differentiable`` of the tensor form in grey levels.
        steers: Whether guidance gets a finite gradient that is not zero at the images.
        judges: Whether scores, labels and similarity are computed.
        conditions: Whether its text tower conditions pipelines.
    """

    text: float
    image: float
    logits: float
    gradient: float
    preprocessed: float
    differentiable: float
    steers: bool
    judges: bool
    conditions: bool


def check(name: str, folder: Path) -> Found:
    """Save a tiny model of a family, load it, and compare."""
    family = FAMILIES[name]
    model, tokenizer, processor = family.build()
    clip = cg.CLIP.from_pretrained(family.save(folder))
    images = [photo(), photo(phase=1.0)]
    tokens = tokenizer(TEXTS, padding="max_length" if name in FIXED else True, return_tensors="pt")
    pixels = dict(processor(images, return_tensors="pt"))
    with torch.no_grad():
        text, image = _unit(model.get_text_features(**tokens)), _unit(model.get_image_features(**pixels))
        logits = model(**tokens, **pixels).logits_per_image
    ours = clip.logits(clip.encode_image(images) @ clip.encode_text(TEXTS).T)
    batch = torch.stack([torch.from_numpy(np.array(each)).permute(2, 0, 1) / 255 for each in images])
    made = torch.stack([clip.preprocess(each) for each in images])
    given = pixels["pixel_values"]
    grey = torch.tensor(clip.image_processor.image_std).min() * 255
    return Found(
        text=_difference(clip.encode_text(TEXTS), text),
        image=_difference(clip.encode_image(images), image),
        logits=_difference(ours, logits) / float(clip.logit_scale.detach().exp()),
        gradient=_gradient_difference(clip, model, pixels, made),
        preprocessed=_difference(made[..., : given.shape[-1]], given),
        differentiable=float(grey * (clip.image_processor.differentiable(batch) - made).abs().max()),
        steers=_steers(clip, batch),
        judges=_judges(clip, images),
        conditions=hasattr(clip, "text_encoder"),
    )


def _unit(output: Any) -> torch.Tensor:
    return F.normalize(output.pooler_output, dim=-1)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).detach().abs().max())


def _gradient_difference(clip: Any, model: Any, pixels: dict[str, Any], made: torch.Tensor) -> float:
    """Compare the gradient of one weighted sum of the image's vector, by the library and by us."""
    towards = torch.randn(clip.projection_dim, generator=torch.Generator().manual_seed(0))
    theirs = pixels["pixel_values"].clone().requires_grad_()
    (_unit(model.get_image_features(**{**pixels, "pixel_values": theirs})) @ towards).sum().backward()
    ours = made.clone().requires_grad_()
    (clip.image_embeds(ours) @ towards).sum().backward()
    expected = theirs.grad
    assert expected is not None and ours.grad is not None and expected.abs().max() > 0
    return _difference(ours.grad[..., : expected.shape[-1]], expected) / float(expected.abs().max())


def _steers(clip: Any, batch: torch.Tensor) -> bool:
    images = batch.clone().requires_grad_()
    cg.CLIPGuidance(clip, "a red apple", cutouts=2).reward(images).sum().backward()
    assert images.grad is not None
    return bool(images.grad.isfinite().all() and (images.grad.abs().amax((1, 2, 3)) > 0).all())


def _judges(clip: Any, images: list[Image.Image]) -> bool:
    scores = cg.clip_score(clip, images, TEXTS[:2], "cosine")
    labels = cg.ZeroShotClassifier(clip, ["apple", "cat"], templates="a photo of a {}")(images)
    distances = cg.set_distances(clip, images, images[::-1], "the same images")["kid"]
    alike = cg.image_similarity(clip, images)
    whole = bool(scores.isfinite().all() and labels.probs.isfinite().all() and alike.isfinite().all())
    one = torch.ones(len(images)) if clip.logit_bias is None else labels.logits.sigmoid().sum(-1)
    return whole and torch.allclose(labels.probs.sum(-1), one) and distances.count == len(images)
