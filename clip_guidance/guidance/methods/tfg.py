"""TFG, training-free guidance (Ye et al. 2024, arXiv:2409.15761, algorithm 1).

It holds the other methods as special cases:

    r̃(x₀) = log (1/n)·Σ_j exp r(x₀ + σ̄_t ε_j),    σ̄_t = σ̄·√(1 − ᾱ_t)
    Δ_t = ρ_t·∇_{x_t} r̃(x̂₀(x_t))                         variance guidance, through the denoiser
    Δ_0 = z − x̂₀,  where z ← z + μ_t·∇r̃(z), N_iter times from x̂₀        mean guidance
    x_{t−1} = DDIM(x_t, x̂₀) + Δ_t/√α_t + √ᾱ_{t−1}·Δ_0,    α_t = ᾱ_t/ᾱ_{t−1}

As a shift of x̂₀ (:mod:`.ddim`), the last line is Δ = (Δ_t/√α_t + √ᾱ_{t−1}·Δ_0)/response. The strengths follow a
schedule of mean 1 over the T steps: ρ_t = ρ·T·s_t/Σs with s = α_t ("increase"), 1 − α_t ("decrease") or 1 ("constant").
N_recur repetitions of a step are ``recurrent(scheduler, N_recur)``; the ε_j are drawn anew in each (:mod:`.smoothing`).

The authors' program gives the same trajectories to rounding, with its names ``rho``, ``mu``, ``sigma``, ``eps_bsz`` for
n, ``iter_steps`` and ``recur_steps``, and with ``clip_x0`` off. Its ``clip_x0``, which its scripts for pixels leave on,
is not in the paper: it clips x̂₀ alone, and adds Δ_t and Δ_0 afterwards. Here a scheduler with ``clip_sample`` clips
x̂₀ + Δ, so that no image leaves the range.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clip_guidance.guidance.adapters.next_level import final_alpha_prod
from clip_guidance.guidance.arguments import check_count, check_number, check_seed
from clip_guidance.guidance.checks import shown
from clip_guidance.guidance.methods.ddim import DDIMStep, OnDDIM, step_of
from clip_guidance.guidance.methods.smoothing import draw_noise, smoothed_gradient
from clip_guidance.guidance.modes.base import StepState

SCHEDULES = ("increase", "decrease", "constant")


@dataclass(frozen=True)
class TFG(OnDDIM):
    """Combine variance guidance, through the denoiser, and mean guidance, at x̂₀, as TFG does.

    Args:
        rho: Strength ρ of variance guidance; 0 turns it off, and with it the backward through the denoiser.
        mu: Strength μ of mean guidance; 0 turns it off.
        sigma: Standard deviation σ̄ of the noise that smooths the reward; 0 for none.
        samples: Number n of noisy copies. The authors' programs run with 1, their library's default is 4.
        iterations: Number N_iter of steps of mean guidance.
        rho_schedule: How ρ_t goes over the steps, one of :data:`SCHEDULES`.
        mu_schedule: How μ_t goes over the steps, one of :data:`SCHEDULES`.
        seed: Seed of the noise.

    Raises:
        TypeError: A strength is not a number.
        ValueError: An argument is out of range: ``samples`` and ``iterations`` from 1 to 10,000, finite strengths,
            ``sigma`` at least 0; or a schedule is not known.

    Example:
        >>> from clip_guidance.guidance import Guidance
        >>> from clip_guidance.guidance.methods import TFG
        >>> mode = TFG(rho=0.0, mu=0.5, iterations=2)
        >>> mode.needs_tape  # without variance guidance there is no backward through the denoiser
        False
        >>> guidance = Guidance(lambda images: images.mean((1, 2, 3)), mode=mode)
    """

    rho: float = 1.0
    mu: float = 1.0
    sigma: float = 0.01
    samples: int = 1
    iterations: int = 4
    rho_schedule: str = "increase"
    mu_schedule: str = "increase"
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("rho", self.rho)
        check_number("mu", self.mu)
        check_number("sigma", self.sigma, least=0)
        check_count("samples", self.samples, of=" of noisy copies")
        check_count("iterations", self.iterations)
        check_seed(self.seed)
        for name in ("rho_schedule", "mu_schedule"):
            schedule = getattr(self, name)
            if not isinstance(schedule, str) or schedule not in SCHEDULES:
                raise ValueError(f"{name} must be one of {', '.join(SCHEDULES)}, got {shown(schedule)}")

    @property
    def needs_tape(self) -> bool:
        """Whether the denoiser's forward must be recorded."""
        return self.rho != 0

    def shift(self, state: StepState) -> Tensor:
        """Return Δ for a scale of 1, of the shape of the sample."""
        step, x0 = step_of(state), state.x0
        noise, sigma = draw_noise(state, self.samples, self.seed), self.sigma * step.level.sigma

        def smoothed(x: Tensor) -> Tensor:
            return smoothed_gradient(state, x, sigma, noise)

        at_x0 = smoothed(x0)
        added = torch.zeros_like(x0)
        if self.rho and step.level.has_signal:
            delta_t = self.rho * share(self.rho_schedule, step, state.scheduler) * state.vjp(at_x0)
            added += delta_t / math.sqrt(step.alpha_t)
        if self.mu:
            mu_t = self.mu * share(self.mu_schedule, step, state.scheduler)
            z = x0 + mu_t * at_x0
            for _ in range(self.iterations - 1):
                z = z + mu_t * smoothed(z)
            added += step.next_level.alpha * (z - x0)
        return step.shift(added)


def share(schedule: str, step: DDIMStep, scheduler: Any) -> float:
    """Return T·s_t/Σs of a schedule at a step of the run."""
    if schedule == "constant":
        return 1.0
    timesteps = torch.unique(scheduler.timesteps.cpu().long()).flip(0)  # recurrence repeats them
    products = scheduler.alphas_cumprod.cpu()[timesteps].double()
    alphas = products / torch.cat([products[1:], products.new_tensor([final_alpha_prod(scheduler)])])
    shares, own = (alphas, step.alpha_t) if schedule == "increase" else (1 - alphas, 1 - step.alpha_t)
    mean = float(shares.mean())
    return own / mean if mean else 1.0  # the only step of a run without any signal
