"""Step lengths relative to what the sampler does by itself, as FreeDoM and MPGD take them."""

from dataclasses import replace

import torch
from torch import Tensor

from clip_guidance.guidance.methods.ddim import step_of
from clip_guidance.guidance.modes.base import StepState
from clip_guidance.guidance.per_sample import per_sample, rms


def unit(gradient: Tensor) -> Tensor:
    """Scale each sample's gradient (B, ...) to a root mean square of 1; 0 stays 0."""
    return gradient / per_sample(rms(gradient), gradient).clamp(min=torch.finfo(gradient.dtype).tiny)


def step_length(state: StepState, rho: float, rho_without: float) -> Tensor:
    """Return the root mean square (B, 1, ...) of a step of x_{t−1}, in the units of x_t.

    With classifier-free guidance ρ·rms(ε̂_cfg − ε̂_uncond), of which x̂₀'s correction is σ/α times as much. Without it
    ρ·rms(ε̂)·(σ/α)·c₁, where c₁ is the weight of x̂₀ in DDPM's step. 0 without a signal in x_t.
    """
    step, x0, alpha, sigma = step_of(state), state.x0, state.level.alpha, state.level.sigma
    if not step.has_signal:
        return per_sample(x0.new_zeros(len(x0)), x0)
    if state.correction is not None:
        return rho * alpha / sigma * per_sample(state.correction.to(x0), x0)
    epsilon = (state.sample.detach().to(x0) - alpha * x0) / sigma
    c1 = replace(step, eta=1.0).response
    return rho_without * per_sample(rms(epsilon), x0) * sigma / alpha * c1
