"""FreeDoM (Yu et al. 2023, arXiv:2303.09833, algorithm 1; the step size of section 4.4 as in its released code).

    x_{t−1} = x'_{t−1} + ρ_t·g,    g = ∇_{x_t} r(x̂₀(x_t)),

with ρ_t = 0.2·rms(ε̂_cfg − ε̂_uncond)/rms(g) under classifier-free guidance, and without it, on pixels,
ρ_t = 0.02·rms(ε̂)·(σ/α)·c₁/rms(g), c₁ = ∂x_{t−1}/∂x̂₀ of DDPM. The means are a sample's, where the released code's run
over the batch. As a shift of x̂₀ (:mod:`.ddim`): Δ = ρ_t·g/response. Guidance and time travel act in a middle
window of the run: ``start=0.3, stop=0.7`` and ``recurrent(scheduler, 3, (0.3, 0.6))`` for Stable Diffusion.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clip_guidance.guidance.adapters.prediction import Prediction
from clip_guidance.guidance.engine.tape import DenoiserTape
from clip_guidance.guidance.methods.ddim import OnDDIM, step_of
from clip_guidance.guidance.methods.step_size import step_length, unit
from clip_guidance.guidance.modes.base import GradientOf


@dataclass(frozen=True)
class FreeDoM(OnDDIM):
    """FreeDoM as a mode.

    Args:
        rho: Share of the classifier-free correction.
        rho_without: Share of DDPM's noise correction, where there is no classifier-free guidance.
    """

    rho: float = 0.2
    rho_without: float = 0.02
    needs_tape: ClassVar[bool] = True
    needs_correction: ClassVar[bool] = True

    def shift(
        self, prediction: Prediction, reward_gradient: GradientOf, data_variance: float, tape: DenoiserTape
    ) -> Tensor:
        """Δ for a scale of 1, of the shape of the sample."""
        step = step_of(prediction)
        gradient = tape.vjp(prediction, reward_gradient(prediction.x0).gradient)
        length = step_length(prediction, step, self.rho, self.rho_without)
        return step.shift(length * unit(gradient))
