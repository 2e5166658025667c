"""Universal guidance (Bansal et al. 2023, arXiv:2302.07121, algorithm 1).

    forward     ε̂ ← ε̂ − s·σ·∇_{x_t} r(x̂₀(x_t))                                          (equation 6)
    backward    ε̂ ← ε̂ − (α/σ)·Δx₀,  Δx₀ = argmax_Δ r(x̂₀ + Δ) by m gradient steps from 0   (equations 7 and 9)

Both change ε̂ alone, so both are shifts of x̂₀ at any scheduler, by σ/α times as much: (σ²/α)·s·∇_{x_t} r, which is mode
"exact" at a scale of s, and Δx₀. The paper repeats each step k times: ``recurrent(scheduler, k)``.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from clip_guidance.guidance.adapters.prediction import Prediction
from clip_guidance.guidance.engine.tape import DenoiserTape
from clip_guidance.guidance.modes import exact
from clip_guidance.guidance.modes.base import GradientOf


@dataclass(frozen=True)
class UniversalGuidance:
    """Universal guidance as a mode.

    Args:
        forward: Weight s of forward guidance; the paper's goes from 2 to 20000 by task. 0 turns it off, and with it
            the backward through the denoiser.
        backward_steps: Number m of gradient steps of backward guidance; 0 turns it off.
        rate: Length of each of them.

    Raises:
        ValueError: ``backward_steps`` is not a whole number, at least 0.
    """

    forward: float = 1.0
    backward_steps: int = 0
    rate: float = 0.1
    needs_correction: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.backward_steps != int(self.backward_steps) or self.backward_steps < 0:
            raise ValueError(f"backward_steps must be a whole number, at least 0, got {self.backward_steps}")

    @property
    def needs_tape(self) -> bool:
        """Whether the denoiser's forward must be recorded."""
        return self.forward != 0

    def check(self, scheduler: Any) -> None:
        """Nothing is refused."""

    def shift(
        self, prediction: Prediction, reward_gradient: GradientOf, data_variance: float, tape: DenoiserTape
    ) -> Tensor:
        """Δ for a scale of 1, of the shape of the sample."""
        x0 = prediction.x0
        for _ in range(self.backward_steps):
            x0 = x0 + self.rate * reward_gradient(x0).gradient
        backward = x0 - prediction.x0
        if not self.forward:
            return backward
        return self.forward * exact.shift(prediction, reward_gradient, data_variance, tape) + backward
