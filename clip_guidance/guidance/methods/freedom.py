"""FreeDoM (Yu et al. 2023, arXiv:2303.09833, algorithm 1).

The step size is the one of section 4.4, as in the released code:

    x_{t−1} = x'_{t−1} + ρ_t·g,    g = ∇_{x_t} r(x̂₀(x_t)),

with ρ_t = 0.2·rms(ε̂_cfg − ε̂_uncond)/rms(g) under classifier-free guidance, and without it, on pixels,
ρ_t = 0.02·rms(ε̂)·(σ/α)·c₁/rms(g), c₁ = ∂x_{t−1}/∂x̂₀ of DDPM. The means are taken over each sample, where the released
code takes them over the batch. As a shift of x̂₀ (:mod:`.ddim`): Δ = ρ_t·g/response. Guidance and time travel act in a
middle window of the run: ``start=0.3, stop=0.7`` and ``recurrent(scheduler, 3, (0.3, 0.6))`` for Stable Diffusion.

The program of TFG's authors, which holds FreeDoM too, takes algorithm 1 as it stands, where ρ_t is any number: g is not
scaled. With a constant ρ that is ``DPS(ρ)`` (:mod:`.dps`) with :func:`recurrent`; its ``rho_schedule`` is the
guidance's ``schedule``.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clip_guidance.guidance.arguments import check_number
from clip_guidance.guidance.methods.ddim import OnDDIM, step_of
from clip_guidance.guidance.methods.step_size import step_length, unit
from clip_guidance.guidance.modes.base import StepState

_RHO_WITHOUT = 0.02  # of the paper


@dataclass(frozen=True)
class FreeDoM(OnDDIM):
    """Add a step along the reward's gradient at the noisy sample, as FreeDoM does.

    The step is as long as a share of the sampler's own correction.

    Args:
        rho: Length of the step as a share of the classifier-free correction. The size of the reward does not matter.
        rho_without: Length of the step as a share of DDPM's noise correction, where there is no classifier-free
            guidance and ``rho`` does not act. None takes the paper's 0.02, and a run that needs it warns of it once.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is not finite, or beyond 1e9.

    Example:
        >>> from clip_guidance.guidance import Guidance
        >>> from clip_guidance.guidance.methods import FreeDoM
        >>> Guidance(lambda images: images.mean((1, 2, 3)), mode=FreeDoM(rho=0.1), start=0.3, stop=0.7).mode
        FreeDoM(rho=0.1, rho_without=None)
    """

    rho: float = 0.2
    rho_without: float | None = None
    needs_tape: ClassVar[bool] = True
    needs_correction: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("rho", self.rho)
        check_number("rho_without", _RHO_WITHOUT if self.rho_without is None else self.rho_without)

    def shift(self, state: StepState) -> Tensor:
        """Return Δ for a scale of 1, of the shape of the sample."""
        gradient = state.vjp(state.gradient(state.x0))
        length = step_length(state, self.rho, self.rho_without, _RHO_WITHOUT)
        return step_of(state).shift(length * unit(gradient))
