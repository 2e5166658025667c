"""Mode "x0" in several steps: the tilt of the posterior mean followed along its strength.

Mode "x0" (:mod:`clip_guidance.guidance.modes.x0`) takes the whole shift scale·w·∇r at x̂₀, as if the gradient were the
same all the way. Where it is not, the shifted sample z(s) of a tilt by s solves

    dz/ds = w·∇r(z),    z(0) = x̂₀,

with the posterior variance w held, and n of Euler's steps go from 0 to the scale:

    Δ_{i+1} = Δ_i + (w/n)·∇r(x̂₀ + scale·Δ_i),    Δ_0 = 0.

n = 1 is mode "x0"; a linear reward gives the same for every n. The mean guidance of TFG (Ye et al. 2024,
arXiv:2409.15761, algorithm 1) takes such steps too, each of a size that it is told.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from clip_guidance.guidance.adapters.prediction import Prediction
from clip_guidance.guidance.modes.base import GradientOf
from clip_guidance.guidance.modes.x0 import posterior_variance


@dataclass(frozen=True)
class Tilt:
    """Mode "x0" in several steps, as a mode; each costs a decode and a pass through CLIP, forward and backward.

    Args:
        steps: How many, at least 1.

    Raises:
        ValueError: ``steps`` is no such number.
    """

    steps: int = 2
    needs_tape: ClassVar[bool] = False
    needs_correction: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.steps != int(self.steps) or self.steps < 1:
            raise ValueError(f"steps must be a whole number, at least 1, got {self.steps}")

    def check(self, scheduler: Any) -> None:
        """Nothing is refused: as mode "x0" it is defined at any scheduler."""

    def shift(self, prediction: Prediction, reward_gradient: GradientOf, data_variance: float, tape: object) -> Tensor:
        """Δ for a scale of 1, of the shape of the sample, where ``prediction.strength`` is the scale."""
        x0, weight = prediction.x0, posterior_variance(prediction.level, data_variance) / self.steps
        scale = torch.ones(1) if prediction.strength is None else prediction.strength
        scale = scale.to(x0).view(-1, *[1] * (x0.ndim - 1))
        shift = weight * reward_gradient(x0).gradient
        for _ in range(self.steps - 1):
            shift = shift + weight * reward_gradient(x0 + scale * shift).gradient
        return shift
