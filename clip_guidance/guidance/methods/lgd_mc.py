"""LGD-MC (Song et al. 2023, "Loss-Guided Diffusion Models for Plug-and-Play Controllable Generation", ICML).

p(x₀|x_t) is taken as N(x̂₀, r_t²I) instead of a point, and the reward is averaged over n samples of it:

    ∇_{x_t} log (1/n)·Σ_j exp r(x̂₀(x_t) + r_t ε_j),    r_t = s/√(1 + s²)

with s = σ/α the variance exploding noise level, so that r_t² = σ²/(α² + σ²) = 1 − ᾱ_t. What DPS does with its
gradient is done with this one: at r_t = 0 it is DPS (:mod:`.dps`).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clip_guidance.guidance.adapters.prediction import Prediction
from clip_guidance.guidance.engine.tape import DenoiserTape
from clip_guidance.guidance.methods.ddim import OnDDIM, step_of
from clip_guidance.guidance.methods.smoothing import Smoothing, check_samples
from clip_guidance.guidance.modes.base import GradientOf
from clip_guidance.guidance.modes.x0 import posterior_variance


@dataclass(frozen=True)
class LGDMC(OnDDIM):
    """LGD-MC as a mode.

    Args:
        zeta: Step size, as DPS's.
        samples: Number n of noisy copies; the paper goes from 1 to 100.
        radius: Factor of r_t: 1 is the paper's, 0 is DPS.
        seed: Of the noise.

    Raises:
        ValueError: ``samples`` is not a positive whole number.
    """

    zeta: float = 1.0
    samples: int = 10
    radius: float = 1.0
    seed: int = 0
    needs_tape: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_samples(self.samples)

    def shift(
        self, prediction: Prediction, reward_gradient: GradientOf, data_variance: float, tape: DenoiserTape
    ) -> Tensor:
        """Δ for a scale of 1, of the shape of the sample."""
        smoothing = Smoothing(self.samples, self.seed)
        generator = smoothing.generator(prediction.level.timestep)
        r_t = self.radius * math.sqrt(posterior_variance(prediction.level, 1.0))
        gradient = tape.vjp(prediction, smoothing.gradient(reward_gradient, prediction.x0, r_t, generator))
        return step_of(prediction).shift(self.zeta * gradient)
