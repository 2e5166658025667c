"""MPGD, manifold preserving guidance (He et al. 2024, arXiv:2311.16424, algorithm 1).

    x̂₀' = x̂₀ + c_t·∇r(x̂₀),    x_{t−1} = α'x̂₀' + √(σ'² − τ²)·ε̂ + τz

There is no backward through the denoiser, and ε̂ belongs to the unguided x̂₀: α'c_t·∇r is added to x_{t−1}, which is the
shift Δ = (α'/response)·c_t·∇r (:mod:`.ddim`).

The released code takes the other form of DDPM's step instead, x_{t−1} = c₁x̂₀' + c₂x_t + τz, which is the same for an
unchanged x̂₀ but moves by c₁ ≪ α' with it: there Δ is c_t·∇r itself. Its step size is FreeDoM's (:mod:`.step_size`) at
the gradient of x̂₀, c_t = ρ·rms(ε̂_cfg − ε̂_uncond)/(α'·rms(∇r)), and without classifier-free guidance
c_t = ρ·rms(ε̂)·(σ/α)·c₁/(α'·rms(∇r)). Its ρ of 15 belongs to that form: in the paper's it would be some thirty times
as much.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clip_guidance.guidance.arguments import check_number
from clip_guidance.guidance.methods.ddim import OnDDIM, step_of
from clip_guidance.guidance.methods.step_size import step_length, unit
from clip_guidance.guidance.modes.base import StepState

_RHO_WITHOUT = 1.0


@dataclass(frozen=True)
class MPGD(OnDDIM):
    """Move x̂₀ along the reward's gradient there, as MPGD without a projection does.

    Args:
        step_size: A constant c_t in the paper's step; None for the released code's step and relative c_t.
        rho: Length of the relative step as a share of the classifier-free correction; the released code takes 15 for
            style, on Stable Diffusion.
        rho_without: Length of the relative step as a share of DDPM's noise correction, where there is no
            classifier-free guidance and ``rho`` does not act. None takes 1, and a run that needs it warns of it once.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is not finite, or beyond 1e9.

    Example:
        >>> from clip_guidance.guidance import Guidance
        >>> from clip_guidance.guidance.methods import MPGD
        >>> Guidance(lambda images: images.mean((1, 2, 3)), mode=MPGD(rho=5.0)).mode
        MPGD(step_size=None, rho=5.0, rho_without=None)
    """

    step_size: float | None = None
    rho: float = 15.0
    rho_without: float | None = None
    needs_tape: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("step_size", 0.0 if self.step_size is None else self.step_size)
        check_number("rho", self.rho)
        check_number("rho_without", _RHO_WITHOUT if self.rho_without is None else self.rho_without)

    @property
    def needs_correction(self) -> bool:  # type: ignore[override]
        """Whether the step is measured by the classifier-free correction."""
        return self.step_size is None

    def shift(self, state: StepState) -> Tensor:
        """Return Δ for a scale of 1, of the shape of the sample."""
        gradient, next_alpha = state.gradient(state.x0), state.next_level.alpha
        if self.step_size is not None:
            return step_of(state).shift(next_alpha * self.step_size * gradient)
        return step_length(state, self.rho, self.rho_without, _RHO_WITHOUT) / next_alpha * unit(gradient)
