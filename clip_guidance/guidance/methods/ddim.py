"""One step of DDIM, and what a shift of x̂₀ does to it.

The step is that of Song et al. 2021 (arXiv:2010.02502), equations 12 and 16. With (α, σ) before the step and
(α', σ') after it,

    x_{t−1} = α'x̂₀ + √(σ'² − τ²)·ε̂ + τz,    τ = η(σ'/σ)√(1 − α²/α'²),

where η = 1 is DDPM. Guidance writes Δ into the model output, which makes x̂₀ + Δ of x̂₀ and with it ε̂ − (α/σ)Δ of ε̂.
So x_{t−1} moves by

    response·Δ,    response = α' − (α/σ)√(σ'² − τ²),

and a method that adds A to x_{t−1} is the shift Δ = A/response. The response is positive, since α'/σ' > α/σ, unless a
step leads nowhere. Where a scheduler clips x̂₀ (``clip_sample``), no shift leads out of that range, and the step is the
shorter.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from clip_guidance.guidance.adapters.next_level import check_ddim, is_ddpm
from clip_guidance.guidance.adapters.noise_level import NoiseLevel
from clip_guidance.guidance.modes.base import StepState

_STILL = 1e-9  # the smallest response of 1000 steps is 4e-4


@dataclass(frozen=True)
class DDIMStep:
    """Describe the step from one noise level to the next, both variance preserving.

    Attributes:
        level: (α, σ) before the step; α² is the papers' ᾱ_t.
        next_level: (α', σ') after the step; α'² is the papers' ᾱ_{t−1}.
        eta: η, 0 for DDIM's deterministic step and 1 for DDPM.
    """

    level: NoiseLevel
    next_level: NoiseLevel
    eta: float

    @property
    def alpha_t(self) -> float:
        """The papers' α_t = ᾱ_t/ᾱ_{t−1}."""
        return (self.level.alpha / self.next_level.alpha) ** 2

    @property
    def response(self) -> float:
        """The derivative ∂x_{t−1}/∂Δ."""
        noise = self.eta**2 * (self.next_level.sigma / self.level.sigma) ** 2 * (1 - self.alpha_t)
        direction = math.sqrt(max(self.next_level.sigma**2 - noise, 0.0))
        return self.next_level.alpha - self.level.alpha / self.level.sigma * direction

    def shift(self, added: Tensor) -> Tensor:
        """Return the Δ by which x_{t−1} moves by ``added``.

        Δ is 0 in a step that stays at its level, where no x̂₀ moves x_{t−1}. DDIM's last step is such a step if
        ``set_alpha_to_one`` is off and its timestep is 0.
        """
        return added / self.response if self.response > _STILL else torch.zeros_like(added)


class OnDDIM:
    """Share what the methods have in common that are written for DDIM."""

    needs_correction: ClassVar[bool] = False

    def check(self, scheduler: Any) -> None:
        """Refuse a scheduler that takes no steps of DDIM.

        Raises:
            UnsupportedSchedulerError: The scheduler is neither a ``DDIMScheduler`` nor a ``DDPMScheduler``.
        """
        check_ddim(scheduler, type(self).__name__)


def step_of(state: StepState) -> DDIMStep:
    """Return the step that is about to be taken; DDPM's η is always 1."""
    return DDIMStep(state.level, state.next_level, 1.0 if is_ddpm(state.scheduler) else state.eta)
