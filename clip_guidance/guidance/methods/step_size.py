"""The length of a step relative to what the sampler does by itself, as FreeDoM and MPGD choose it."""

from dataclasses import replace

import torch
from torch import Tensor

from clip_guidance.guidance.adapters.prediction import Prediction
from clip_guidance.guidance.methods.ddim import Step


def unit(gradient: Tensor) -> Tensor:
    """Each sample's gradient (B, ...) at a root mean square of 1; 0 stays 0."""
    return gradient / rms(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample of (B, ...), as (B, 1, ...)."""
    return x.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (x.ndim - 1))


def step_length(prediction: Prediction, step: Step, rho: float, rho_without: float) -> Tensor:
    """Root mean square (B, 1, ...) of a step of x_{t−1}, in the units of x_t.

    With classifier-free guidance ρ·rms(ε̂_cfg − ε̂_uncond), of which x̂₀'s correction is σ/α times as much. Without it
    ρ·rms(ε̂)·(σ/α)·c₁, where c₁ is the weight of x̂₀ in DDPM's step. 0 without a signal in x_t.
    """
    (alpha, sigma), x0 = (step.level.alpha, step.level.sigma), prediction.x0
    if not step.has_signal:
        return x0.new_zeros(len(x0), *[1] * (x0.ndim - 1))
    if prediction.correction is not None:
        return rho * alpha / sigma * prediction.correction.to(x0).view(-1, *[1] * (x0.ndim - 1))
    epsilon = (prediction.sample.detach().to(x0) - alpha * x0) / sigma
    return rho_without * rms(epsilon) * sigma / alpha * replace(step, eta=1.0).response
