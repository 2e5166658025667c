"""Step lengths relative to what the sampler does by itself, as FreeDoM and MPGD take them."""

from dataclasses import replace

import torch
from torch import Tensor

from clip_guidance._tensors import per_sample
from clip_guidance.guidance.methods.ddim import step_of
from clip_guidance.guidance.modes.base import StepState
from clip_guidance.guidance.per_sample import rms

_NO_CORRECTION = 1e-5  # of ε̂: rounding, where both texts are the same


def unit(gradient: Tensor) -> Tensor:
    """Scale each sample's gradient (B, ...) to a root mean square of 1; 0 stays 0."""
    return gradient / per_sample(rms(gradient), gradient).clamp(min=torch.finfo(gradient.dtype).tiny)


def step_length(state: StepState, rho: float, rho_without: float | None, default: float) -> Tensor:
    """Return the root mean square (B, 1, ...) of a step of x_{t−1}, in the units of x_t.

    With classifier-free guidance ρ·rms(ε̂_cfg − ε̂_uncond), of which x̂₀'s correction is σ/α times as much. Without it,
    or where it corrects nothing since both texts are the same, ρ·rms(ε̂)·(σ/α)·c₁, where c₁ is the weight of x̂₀ in
    DDPM's step. 0 without a signal in x_t.

    Args:
        state: The step.
        rho: ρ with classifier-free guidance.
        rho_without: ρ without it; None for ``default``, of which ``state.tell`` is told.
        default: ρ without it where none is given.
    """
    step, x0, alpha, sigma = step_of(state), state.x0, state.level.alpha, state.level.sigma
    if not step.level.has_signal:
        return per_sample(x0.new_zeros(len(x0)), x0)
    size = rms((state.sample.detach().to(x0) - alpha * x0) / sigma)
    correction = x0.new_zeros(len(x0)) if state.correction is None else state.correction.to(x0)
    missing = alpha / sigma * correction <= _NO_CORRECTION * size
    if rho_without is None and missing.any():
        state.tell(
            f"there is no classifier-free guidance, or it corrects nothing, so rho={rho:g} does not act: the step is a "
            f"share of the noise instead, rho_without={default:g}. Set rho_without to choose the strength"
        )
    c1 = replace(step, eta=1.0).response
    without = (default if rho_without is None else rho_without) * per_sample(size, x0) * sigma / alpha * c1
    return torch.where(per_sample(missing, x0), without, rho * alpha / sigma * per_sample(correction, x0))
