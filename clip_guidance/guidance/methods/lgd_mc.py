"""LGD-MC, loss-guided diffusion by Monte Carlo.

Song et al. 2023, "Loss-Guided Diffusion Models for Plug-and-Play Controllable Generation", ICML. p(x₀|x_t) is taken
as N(x̂₀, r_t²I) instead of a point, and the reward is averaged over n samples of it:

    ∇_{x_t} log (1/n)·Σ_j exp r(x̂₀(x_t) + r_t ε_j),    r_t = s/√(1 + s²)

with s = σ/α the variance exploding noise level, so that r_t² = σ²/(α² + σ²) = 1 − ᾱ_t. The gradient is used as DPS uses
its own: at r_t = 0 this is DPS (:mod:`.dps`).

The program of TFG's authors, which holds LGD-MC too, divides this gradient by n once more. The paper does not: the mean
is inside the logarithm. So their ``guidance_strength`` is n·ζ here, and ζ keeps its meaning whatever n is.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clip_guidance.guidance.arguments import check_count, check_number, check_seed
from clip_guidance.guidance.methods.ddim import OnDDIM, step_of
from clip_guidance.guidance.methods.smoothing import draw_noise, smoothed_gradient
from clip_guidance.guidance.modes.base import StepState
from clip_guidance.guidance.modes.x0 import posterior_variance


@dataclass(frozen=True)
class LGDMC(OnDDIM):
    """Add the gradient of a reward that is averaged over noisy copies of x̂₀, as LGD-MC does.

    Args:
        zeta: Step size ζ, as in DPS.
        samples: Number n of noisy copies; the paper goes from 1 to 100. Each costs a decode and a pass of the reward.
        radius: Factor of r_t: 1 is the paper's, 0 is DPS.
        seed: Seed of the noise.

    Raises:
        TypeError: ``zeta`` or ``radius`` is not a number.
        ValueError: An argument is out of range: ``samples`` from 1 to 10,000, a finite ``zeta``, ``radius`` at least 0.

    Example:
        >>> from clip_guidance.guidance import Guidance
        >>> from clip_guidance.guidance.methods import LGDMC
        >>> Guidance(lambda images: images.mean((1, 2, 3)), mode=LGDMC(zeta=0.5, samples=4)).mode
        LGDMC(zeta=0.5, samples=4, radius=1.0, seed=0)
    """

    zeta: float = 1.0
    samples: int = 10
    radius: float = 1.0
    seed: int = 0
    needs_tape: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("zeta", self.zeta)
        check_number("radius", self.radius, least=0)
        check_count("samples", self.samples, of=" of noisy copies")
        check_seed(self.seed)

    def shift(self, state: StepState) -> Tensor:
        """Return Δ for a scale of 1, of the shape of the sample."""
        noise = draw_noise(state, self.samples, self.seed)
        r_t = self.radius * math.sqrt(posterior_variance(state.level, 1.0))
        gradient = state.vjp(smoothed_gradient(state, state.x0, r_t, noise))
        return step_of(state).shift(self.zeta * gradient)
