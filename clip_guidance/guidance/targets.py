"""What CLIP guidance steers towards: texts and images, and sums of them with weights.

The reward of a sum is Σ weight·exp(logit_scale)·cos(image, target). The cosine is linear in the target's unit vector,
so that one vector, of another length, stands for the whole sum. An image is a target by its embedding from the same
image tower.
"""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from clip_guidance.clip import DualEncoder
from clip_guidance.guidance.checks import as_weight, is_number, shown
from clip_guidance.images.find import EXTENSIONS
from clip_guidance.images.load import load_image

ImageTarget: TypeAlias = Image.Image | Tensor | os.PathLike[str]
#: A text, an image, or a sum of them with weights: a mapping, or pairs where an image has no hash (PIL's have none).
Target: TypeAlias = str | ImageTarget | Mapping[Any, float] | Sequence[Any]

EXPECTED = "a text, an image (PIL, tensor (3, H, W) or pathlib.Path) or {target: weight}"


@dataclass(frozen=True, eq=False)
class Term:
    """One text or image of a sum.

    Attributes:
        target: The text or the image.
        weight: Its weight; negative to steer away.
        name: What it is called in messages.
    """

    target: str | ImageTarget
    weight: float
    name: str


def is_plain(target: Any) -> bool:
    """Return whether a target is one text or one image. A str is always a text."""
    return isinstance(target, str | Image.Image | Tensor | os.PathLike)


def is_pair(entry: Any) -> bool:
    """Return whether an entry of a list is a pair (target, weight)."""
    return isinstance(entry, tuple | list) and len(entry) == 2 and is_number(entry[1])


def as_terms(name: str, target: Any, weight: float = 1.0) -> list[Term]:
    """List the texts and images of one target.

    Args:
        name: What the target is called in messages.
        target: A text, an image, a mapping from targets to weights, or a list of pairs (target, weight) and of targets
            of weight 1.
        weight: Factor of all weights.

    Raises:
        TypeError: The target, or a part of it, is something else, or a weight is not a number.
        ValueError: There is no target, a text is empty, or a weight is not finite.
    """
    if isinstance(target, str) and not target.strip():
        raise ValueError(f"{name} is empty; there is nothing to steer towards")
    if is_plain(target):
        return [Term(target, weight, name)]
    is_sum = isinstance(target, list | tuple) and any(map(is_pair, target))
    if not isinstance(target, Mapping) and not is_sum:
        raise TypeError(f"{name} must be {EXPECTED}; got {type(target).__name__} {shown(target)}")
    if not target:
        raise ValueError(f"{name} is empty; expected at least one text or image")
    pairs = target.items() if isinstance(target, Mapping) else [e if is_pair(e) else (e, 1.0) for e in target]
    terms = []
    for index, (entry, factor) in enumerate(pairs):
        factor = as_weight(factor, f"entry {index} of {name}, {shown(entry)},")
        terms += as_terms(f"entry {index} of {name}", entry, weight * factor)
    return terms


def encode(clip: DualEncoder, terms: Sequence[Term]) -> Tensor:
    """Embed the terms as unit vectors (n, d), all texts at once and all images at once.

    Raises:
        ImageError: An image cannot be read.
        ValueError: An embedding is not finite.

    Warns:
        UserWarning: A text looks like the path of an image.
    """
    texts = [index for index, term in enumerate(terms) if isinstance(term.target, str)]
    images = [index for index, term in enumerate(terms) if not isinstance(term.target, str)]
    found = []
    if texts:
        _warn_of_paths([terms[index] for index in texts])
        found.append(clip.encode_text([str(terms[index].target) for index in texts]))
    if images:
        found.append(clip.encode_image([_read(terms[index]) for index in images]))
    embeds = torch.cat(found)[torch.tensor(texts + images).argsort().to(found[0].device)]
    for term, is_finite in zip(terms, embeds.isfinite().all(-1).tolist(), strict=True):
        if not is_finite:
            raise ValueError(f"the embedding of {term.name} is not finite: the image or the CLIP's weights are damaged")
    return embeds


def weighted_sum(terms: Sequence[Term], embeds: Tensor) -> Tensor:
    """Add up the embeddings (n, d) of the terms with their weights, (d,)."""
    return embeds.new_tensor([term.weight for term in terms]) @ embeds


def _read(term: Term) -> Image.Image:
    source: Any = term.target
    return load_image(source, None if isinstance(source, os.PathLike) else term.name)


def _warn_of_paths(terms: Iterable[Term]) -> None:
    for term in terms:
        text = str(term.target)
        if PurePath(text.strip()).suffix.lower() in EXTENSIONS or (os.sep in text and os.path.isfile(text)):
            warnings.warn(
                f"{term.name}, {shown(text)}, looks like an image's path, and is read as a text. To steer towards the "
                "image, pass a pathlib.Path",
                stacklevel=8,
            )
