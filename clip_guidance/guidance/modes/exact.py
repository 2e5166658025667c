"""Mode "exact": the reward's gradient at the noisy sample, through the denoiser.

    Δ = (σ²/α) · (∂x̂₀/∂x)ᵀ ∇r(x̂₀)

By Tweedie's formula ∂x̂₀/∂x = (α/σ²)·Cov(x₀|x), so this is mode "x0" with the denoiser's own posterior
covariance in place of the isotropic one. The gradient is the one of DPS (Chung et al. 2023, arXiv:2209.14687),
the weight the one of classifier guidance (Dhariwal & Nichol 2021, arXiv:2105.05233). It costs one backward
through the denoiser and no second forward: :class:`~clip_guidance.guidance.engine.tape.DenoiserTape` records the
forward that the pipeline runs anyway. At α = 0 the sample holds nothing of x₀, and the mode falls back to "x0".

The Jacobian of a consistency function (LCM) is none of a mean's: Tweedie's formula does not hold of it, and where α is
small it is ρ⁻¹ times as large, with the correlation ρ of mode "x0". There Δ is taken times ρ/(1 + ρ), with which a
Gaussian prior's is exact again.

A denoiser is not ideal, and where α is small σ²/α makes its error larger than the covariance: an error of 5 % of ε is,
at ᾱ = 6·10⁻⁵, some thousand times the variance of any data. A posterior has no more variance than its prior, so each
sample's shift is bounded by

    rms(scale·Δ) ≤ max(scale·w·rms(∇r), 3·√w),    w = s²σ²/(α²s² + σ²),

the length of mode "x0" or, where that is longer, three standard deviations of the posterior with the prior's variance
s². The second is for data whose elements vary together: along their common direction the covariance is many times w,
but three standard deviations, over all elements, are left by at most 1/9 of any distribution (Chebyshev). An ideal
denoiser of data of variance s² stays within the bound, unless the tilt leaves the data behind.
"""

import math

import torch
from torch import Tensor

from clip_guidance.guidance.modes import x0
from clip_guidance.guidance.modes.base import StepState
from clip_guidance.guidance.modes.x0 import correlation, posterior_variance
from clip_guidance.guidance.per_sample import capped, rms

_DEVIATIONS = 3.0  # standard deviations of the posterior


def shift(state: StepState, bounded: bool = True) -> Tensor:
    """Return Δ for a scale of 1, of the shape of the sample.

    ``data_variance`` matters only to the bound, and without a signal. One that is too small shortens strong shifts at
    high noise; one that is too large lets more of the denoiser's error pass.

    Args:
        state: The step.
        bounded: Whether shifts that are too long for a posterior are shortened; a published method does without.
    """
    if not state.level.has_signal:
        return x0.shift(state)
    gradient = state.gradient(state.x0)
    factor = state.level.sigma**2 / state.level.alpha
    if state.level.of_consistency:
        rho = correlation(state.level, state.data_variance)
        factor *= rho / (1 + rho)
    covariance_times_gradient = factor * state.vjp(gradient)
    if not bounded:
        return covariance_times_gradient
    return capped(covariance_times_gradient, _longest(state, gradient)).shift


def _longest(state: StepState, gradient: Tensor) -> Tensor:
    """Return the largest root mean square (B,) of a shift for a scale of 1."""
    w = posterior_variance(state.level, state.data_variance)
    deviations = _DEVIATIONS * math.sqrt(w) / state.scale.abs().to(gradient)  # infinite at a scale of 0
    return torch.maximum(w * rms(gradient), deviations)
