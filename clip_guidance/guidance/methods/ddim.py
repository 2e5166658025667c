"""One step of DDIM (Song et al. 2021, arXiv:2010.02502, equations 12 and 16), and what a shift of x̂₀ does to it.

With (α, σ) before the step and (α', σ') after it,

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

from clip_guidance.guidance.adapters.noise_level import NoiseLevel, UnsupportedSchedulerError
from clip_guidance.guidance.adapters.prediction import Prediction

_KNOWN = ("DDIMScheduler", "DDPMScheduler")
_NO_SIGNAL = 2**-11  # of α/σ: diffusers writes a terminal signal-to-noise ratio of zero as 0 or as α/σ = 2⁻¹²
_STILL = 1e-9  # the smallest response of 1000 steps is 4e-4


@dataclass(frozen=True)
class Step:
    """From one noise level to the following, both variance preserving: α² is the papers' ᾱ_t, α'² their ᾱ_{t−1}."""

    level: NoiseLevel
    following: NoiseLevel
    eta: float

    @property
    def alpha_t(self) -> float:
        """The papers' α_t = ᾱ_t/ᾱ_{t−1}."""
        return (self.level.alpha / self.following.alpha) ** 2

    @property
    def has_signal(self) -> bool:
        """Whether x_t holds anything of x₀; at a terminal signal-to-noise ratio of zero what is divided by α rests."""
        return self.level.alpha > _NO_SIGNAL * self.level.sigma

    @property
    def response(self) -> float:
        """∂x_{t−1}/∂Δ."""
        noise = self.eta**2 * (self.following.sigma / self.level.sigma) ** 2 * (1 - self.alpha_t)
        direction = math.sqrt(max(self.following.sigma**2 - noise, 0.0))
        return self.following.alpha - self.level.alpha / self.level.sigma * direction

    def shift(self, added: Tensor) -> Tensor:
        """Δ by which x_{t−1} moves by ``added``; 0 in a step that stays at its level, where no x̂₀ can move it.

        DDIM's last step is such a one if ``set_alpha_to_one`` is off and its timestep is 0.
        """
        return added / self.response if self.response > _STILL else torch.zeros_like(added)


class OnDDIM:
    """What the methods share that are written for DDIM."""

    needs_correction: ClassVar[bool] = False

    def check(self, scheduler: Any) -> None:
        """Refuse a scheduler that takes no steps of DDIM.

        Raises:
            UnsupportedSchedulerError: For that reason.
        """
        check_ddim(scheduler, type(self).__name__)


def step_of(prediction: Prediction) -> Step:
    """The step that ``prediction`` is about to enter; DDPM's η is always 1."""
    scheduler, level = prediction.scheduler, prediction.level
    eta = 1.0 if _is(scheduler, "DDPMScheduler") else prediction.eta
    return Step(level, following_level(scheduler, level), eta)


def check_ddim(scheduler: Any, what: str) -> None:
    """Refuse a scheduler that takes no steps of DDIM.

    Raises:
        UnsupportedSchedulerError: For that reason.
    """
    if not any(_is(scheduler, name) for name in _KNOWN):
        raise UnsupportedSchedulerError(
            f"{what} is defined by its paper on the steps of {' or '.join(_KNOWN)}; the pipeline's scheduler is a "
            f"{type(scheduler).__name__}. Exchange it with `DDIMScheduler.from_config(pipe.scheduler.config)`"
        )


def following_level(scheduler: Any, level: NoiseLevel) -> NoiseLevel:
    """The noise level at which the step from ``level`` ends."""
    timestep = level.timestep
    if timestep is None:
        raise ValueError("expected a noise level that knows its timestep, as noise_level() returns it for DDIM")
    if hasattr(scheduler, "previous_timestep"):
        following = int(scheduler.previous_timestep(timestep))
    else:
        following = int(timestep) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    alpha_prod = float(scheduler.alphas_cumprod[following] if following >= 0 else final_alpha_prod(scheduler))
    return NoiseLevel(math.sqrt(alpha_prod), math.sqrt(1 - alpha_prod), following)


def final_alpha_prod(scheduler: Any) -> float:
    """ᾱ at which a run ends: DDPM's is 1."""
    return float(getattr(scheduler, "final_alpha_cumprod", 1.0))


def _is(scheduler: Any, name: str) -> bool:
    return any(cls.__name__ == name for cls in type(scheduler).__mro__)
