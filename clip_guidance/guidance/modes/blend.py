"""Mode "blend": a tower of noisy latents where there is noise, CLIP at x̂₀ where there is little.

    Δ = b·n·Δ_noisy + (1 − n)·Δ_x0,    n = σ²/(α² + σ²)

with the share n of noise in the sample's variance. Early in a run x̂₀ is a blur that no CLIP was trained on, while the
tower (:mod:`.noisy`) reads the sample itself; late in a run x̂₀ is an image, of which the whole CLIP knows more than a
small tower. Where both gradients are those of one log p(y|x₀), b = 1 is right: of a Gaussian and a linear reward both
are the same. The tower's own temperature and CLIP's differ, so that b is an option. The sources of both shifts are in
:mod:`.noisy` and :mod:`.x0`; their blend is this package's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clip_guidance.guidance.checks import as_number
from clip_guidance.guidance.modes import x0
from clip_guidance.guidance.modes.base import StepState
from clip_guidance.guidance.modes.noisy import Noisy


@dataclass(frozen=True)
class Blend(Noisy):
    """Steer by a tower of noisy latents and by CLIP, as a mode of :class:`~clip_guidance.guidance.CLIPGuidance`.

    A step costs as much as one of mode "x0" and one of mode "noisy". The rewards in the report are CLIP's, at x̂₀.

    Args:
        tower: The tower; None for the one that belongs to the guidance's CLIP, in the folder ``noisy`` of the CLIP's.
        noisy_weight: The factor b of what the tower says, at least 0; 0 leaves CLIP at x̂₀ alone, less at high noise. By
            default what names most images on the packaged model; without text in the pipeline more is better there.

    Raises:
        TypeError: ``tower`` or ``noisy_weight`` is something else.
        ValueError: ``noisy_weight`` is negative or not finite.

    Example:
        >>> import clip_guidance as cg
        >>> cg.CLIPGuidance("emoji", "a red apple", scale=10.0, mode=cg.Blend(noisy_weight=0.5)).scale
        10.0
    """

    noisy_weight: float = 0.6
    name: ClassVar[str] = "blend"

    def __post_init__(self) -> None:
        super().__post_init__()
        weight = as_number("noisy_weight", self.noisy_weight)
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"noisy_weight must be a finite number of at least 0, got {weight}")

    def shift(self, state: StepState) -> Tensor:
        """Return Δ for a scale of 1, of the shape of the sample."""
        noise = state.level.sigma**2 / (state.level.alpha**2 + state.level.sigma**2)
        by_clip = x0.shift(state)  # first, since the report notes the rewards of the first
        by_tower = super().shift(state).to(by_clip)
        return self.noisy_weight * noise * by_tower + (1 - noise) * by_clip
