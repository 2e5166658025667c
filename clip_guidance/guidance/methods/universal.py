"""Universal guidance (Bansal et al. 2023, arXiv:2302.07121, algorithm 1).

    forward     ε̂ ← ε̂ − s·σ·∇_{x_t} r(x̂₀(x_t))                                          (equation 6)
    backward    ε̂ ← ε̂ − (α/σ)·Δx₀,  Δx₀ = argmax_Δ r(x̂₀ + Δ) by m gradient steps from 0   (equations 7 and 9)

Both change ε̂ alone, so both are shifts of x̂₀ at any scheduler, by σ/α times as much: (σ²/α)·s·∇_{x_t} r, which is mode
"exact" at a scale of s without its bound, and Δx₀. The paper repeats each step k times: ``recurrent(scheduler, k)``.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from clip_guidance.guidance.arguments import check_count, check_number
from clip_guidance.guidance.modes import exact
from clip_guidance.guidance.modes.base import StepState


@dataclass(frozen=True)
class UniversalGuidance:
    """Steer the noise forward, through the denoiser, and backward, by gradient steps on x̂₀.

    Args:
        forward: Weight s of forward guidance; the paper's goes from 2 to 20000 by task. 0 turns it off, and with it
            the backward through the denoiser.
        backward_steps: Number m of gradient steps of backward guidance; 0 turns it off.
        rate: Length of each of these steps, as a factor of the gradient.

    Raises:
        TypeError: ``forward`` or ``rate`` is not a number.
        ValueError: ``backward_steps`` is not a whole number from 0 to 10,000, or a factor is not finite.

    Example:
        >>> from clip_guidance.guidance import Guidance
        >>> from clip_guidance.guidance.methods import UniversalGuidance
        >>> Guidance(lambda images: images.mean((1, 2, 3)), mode=UniversalGuidance(forward=2.0)).mode
        UniversalGuidance(forward=2.0, backward_steps=0, rate=0.1)
    """

    forward: float = 1.0
    backward_steps: int = 0
    rate: float = 0.1
    needs_correction: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("forward", self.forward)
        check_number("rate", self.rate)
        check_count("backward_steps", self.backward_steps, least=0)

    @property
    def needs_tape(self) -> bool:
        """Whether the denoiser's forward must be recorded."""
        return self.forward != 0

    def check(self, scheduler: Any) -> None:
        """Refuse nothing: both parts are defined at any scheduler."""

    def shift(self, state: StepState) -> Tensor:
        """Return Δ for a scale of 1, of the shape of the sample."""
        z = state.x0
        for _ in range(self.backward_steps):
            z = z + self.rate * state.gradient(z)
        backward = z - state.x0
        if not self.forward:
            return backward
        return self.forward * exact.shift(state, bounded=False) + backward
