"""Mode "x0": the reward's gradient at x̂₀, weighted by the posterior variance.

Tilting p(x₀) by exp(r(x₀)) moves the posterior mean of x₀ by Var(x₀|x)·∇r to first order. With an isotropic
Gaussian prior of variance s² the posterior variance is known in closed form,

    Δ = w · ∇r(x̂₀),    w = s²σ²/(α²s² + σ²),

so nothing is differentiated through the denoiser. s² = 1 gives the r² of ΠGDM (Song et al. 2023,
"Pseudoinverse-Guided Diffusion Models for Inverse Problems"); differentiating at x̂₀ alone is MPGD's
shortcut (He et al. 2024, arXiv:2311.16424), whose constant weight w replaces.

The x̂₀ of a consistency function (LCM) is no mean but the end of the sample's trajectory, μ + s·(x − αμ)/√(α²s² + σ²)
with the same prior. A shift of x₀ by s²·∇r in all samples before moves it by ρ·s²·∇r, with its correlation to the
sample's own x₀, so that each step owes

    w = s²·(1 − ρ),    ρ = αs/√(α²s² + σ²),

where a mean's is s²·(1 − ρ²). Both are s² at pure noise. With the mean's weight, LCM's steps would add up to as much
as twice the tilt, the more the more there are.
"""

import math

from torch import Tensor

from clip_guidance.guidance.adapters.noise_level import NoiseLevel
from clip_guidance.guidance.modes.base import StepState


def posterior_variance(level: NoiseLevel, data_variance: float) -> float:
    """Return w = Var(x₀|x) for x₀ of variance ``data_variance``; of a consistency function what stands in its place.

    It is 0 at sigma = 0, and ``data_variance`` at alpha = 0.
    """
    if level.of_consistency:
        return data_variance * (1 - correlation(level, data_variance))
    noise_variance = level.sigma**2
    return data_variance * noise_variance / (level.alpha**2 * data_variance + noise_variance)


def correlation(level: NoiseLevel, data_variance: float) -> float:
    """Return the correlation ρ, in [0, 1], of a noisy sample with its x₀ of variance ``data_variance``."""
    return level.alpha * math.sqrt(data_variance) / math.hypot(level.alpha * math.sqrt(data_variance), level.sigma)


def shift(state: StepState) -> Tensor:
    """Return Δ for a scale of 1, of the shape of the sample."""
    w = posterior_variance(state.level, state.data_variance)
    return w * state.gradient(state.x0)
