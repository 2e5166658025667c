"""Distances of generated images from a reference set: several from one encoding, with all that they depend on.

    cmmd      Jayasumana et al. 2024   Gaussian kernel on unit embeddings, biased, × 1000    (.cmmd)
    kid       Binkowski et al. 2018    cubic kernel on the pooled states, unbiased           (.kid)
    clip-fid  Kynkäänniemi et al. 2023 Fréchet distance of the projections                   (.fid)

A number without the reference set, the two counts and the CLIP cannot be compared with any other: the result has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_guidance.clip import DualEncoder, as_clip
from clip_guidance.metrics.clip_score import judge_record
from clip_guidance.metrics.cmmd import BANDWIDTH, SCALE, cmmd
from clip_guidance.metrics.features import kernel_features, pooled_states
from clip_guidance.metrics.fid import frechet_distance
from clip_guidance.metrics.kid import kernel_distance

DEFINITIONS: dict[str, tuple[Callable[[Tensor, Tensor], float], dict[str, Any]]] = {
    "cmmd": (cmmd, {"features": "unit embeddings", "bandwidth": BANDWIDTH, "scale": SCALE, "estimate": "biased"}),
    "kid": (kernel_distance, {"features": "pooled states of length sqrt(D)", "degree": 3, "estimate": "unbiased"}),
    "clip-fid": (frechet_distance, {"features": "projections", "estimate": "biased"}),
}


@dataclass(frozen=True)
class SetDistance:
    """Hold a distance and what it depends on.

    Attributes:
        definition: "cmmd", "kid" or "clip-fid".
        value: The distance.
        count: Number of generated images, n.
        reference_count: Number of images of the reference set, m.
        reference: What the reference set is, in the caller's words.
        settings: Features, kernel and estimate.
        judge: Which CLIP in which precision.
    """

    definition: str
    value: float
    count: int
    reference_count: int
    reference: str
    settings: dict[str, Any] = field(default_factory=dict)
    judge: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the distance and what it depends on in flat columns, for a table."""
        own = {key: value for key, value in asdict(self).items() if key not in ("settings", "judge")}
        return {**own, **self.settings, **self.judge}


@torch.no_grad()
def set_distances(
    clip: DualEncoder,
    images: Any,
    reference_images: Any,
    reference: str,
    definitions: Sequence[str] = ("cmmd", "kid"),
    batch_size: int = 64,
) -> dict[str, SetDistance]:
    """Measure distances of images from a reference set; every image is encoded once.

    Args:
        clip: The judge; not the CLIP that guided the images.
        images: Images, n of them, as for ``CLIP.encode_image``, n at least 2.
        reference_images: Images of the reference set, m at least 2.
        reference: What the reference set is, such as "COCO val2017, 5,000 images"; the results repeat it.
        definitions: Which distances: "cmmd", "kid", "clip-fid".
        batch_size: Images encoded at once; it changes speed and memory, not the distances.

    Returns:
        For each definition its distance.

    Raises:
        ValueError: No distance has such a name, the reference is not named, or a set has fewer than 2 images.
        ImageError: An image cannot be read.

    Example:
        >>> import clip_guidance as cg
        >>> from PIL import Image
        >>> judge = cg.CLIP.from_pretrained("emoji-judge")
        >>> reds = [Image.new("RGB", (64, 64), (255, shade, shade)) for shade in (0, 60)]
        >>> blues = [Image.new("RGB", (64, 64), (shade, shade, 255)) for shade in (0, 60)]
        >>> near, far = (cg.set_distances(judge, reds, images, "squares")["cmmd"] for images in (reds, blues))
        >>> abs(near.value) < 1e-6 < far.value, far.reference_count
        (True, 2)
    """
    if unknown := [name for name in definitions if name not in DEFINITIONS]:
        raise ValueError(f"no set distance {unknown[0]!r}; there are {', '.join(DEFINITIONS)}")
    if not reference.strip():
        raise ValueError("expected the name of the reference set, without which a distance says nothing; got none")
    clip = as_clip(clip)
    sides = [pooled_states(clip, part, batch_size) for part in (images, reference_images)]
    judge = judge_record(clip)

    def measured(name: str) -> SetDistance:
        distance, settings = DEFINITIONS[name]
        a, b = (_features(clip, name, states) for states in sides)
        return SetDistance(name, distance(a, b), len(a), len(b), reference, settings, judge)

    return {name: measured(name) for name in definitions}


def _features(clip: DualEncoder, name: str, states: Tensor) -> Tensor:
    if name == "kid":
        return kernel_features(states)
    projections = clip.project_states(states).float()
    return F.normalize(projections, dim=-1) if name == "cmmd" else projections
