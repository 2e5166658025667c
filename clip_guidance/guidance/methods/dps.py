"""DPS, diffusion posterior sampling (Chung et al. 2023, arXiv:2209.14687, algorithm 1).

    x_{t−1} = x'_{t−1} + ζ·∇_{x_t} r(x̂₀(x_t)),

where x'_{t−1} is the unguided step of DDPM: the gradient passes through the denoiser. The paper's step size
ζ_i = ζ/‖y − A(x̂₀)‖ turns the gradient of the squared residual into one of constant length; so does, up to a factor of
2, the reward r = −‖y − A(x̂₀)‖ with a constant ζ, which is what the released code computes. As a shift of x̂₀
(:mod:`.ddim`): Δ = ζ·∇_{x_t} r/response.

The program of TFG's authors, which holds DPS too, divides the gradient by |r| for any reward. That is the gradient of
sign(r)·log|r|: with this as the reward, such as ``lambda images: -(-reward(images)).log()`` for a log probability, the
trajectories are theirs. It is the paper's step for no residual: its rewards are −‖·‖, whose gradient has a constant
length already, and the division lengthens the step as r nears 0. So here the gradient is taken as it is.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clip_guidance.guidance.arguments import check_number
from clip_guidance.guidance.methods.ddim import OnDDIM, step_of
from clip_guidance.guidance.modes.base import StepState


@dataclass(frozen=True)
class DPS(OnDDIM):
    """Add the reward's gradient at the noisy sample to each step of DDIM or DDPM, as DPS does.

    Args:
        zeta: Step size ζ, the factor of the gradient; the paper's values are 0.3 to 1.

    Raises:
        TypeError: ``zeta`` is not a number.
        ValueError: ``zeta`` is not finite, or beyond 1e9.

    Example:
        >>> from clip_guidance.guidance import Guidance
        >>> from clip_guidance.guidance.methods import DPS
        >>> Guidance(lambda images: images.mean((1, 2, 3)), mode=DPS(zeta=0.5)).mode
        DPS(zeta=0.5)
    """

    zeta: float = 1.0
    needs_tape: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("zeta", self.zeta)

    def shift(self, state: StepState) -> Tensor:
        """Return Δ for a scale of 1, of the shape of the sample."""
        gradient = state.vjp(state.gradient(state.x0))
        return step_of(state).shift(self.zeta * gradient)
