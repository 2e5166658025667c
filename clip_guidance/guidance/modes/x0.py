"""Mode "x0": the reward's gradient at x̂₀, weighted by the posterior variance.

Tilting p(x₀) by exp(r(x₀)) moves the posterior mean of x₀ by Var(x₀|x)·∇r to first order. With an isotropic
Gaussian prior of variance s² the posterior variance is known in closed form,

    Δ = w · ∇r(x̂₀),    w = s²σ²/(α²s² + σ²),

so nothing is differentiated through the denoiser. s² = 1 gives the r² of ΠGDM (Song et al. 2023,
"Pseudoinverse-Guided Diffusion Models for Inverse Problems"); differentiating at x̂₀ alone is MPGD's
shortcut (He et al. 2024, arXiv:2311.16424), whose constant weight w replaces.
"""

from torch import Tensor

from clip_guidance.guidance.adapters.noise_level import NoiseLevel
from clip_guidance.guidance.modes.base import StepState


def posterior_variance(level: NoiseLevel, data_variance: float) -> float:
    """Return w = Var(x₀|x) for x₀ of variance ``data_variance``.

    It is 0 at sigma = 0, and ``data_variance`` at alpha = 0.
    """
    noise_variance = level.sigma**2
    return data_variance * noise_variance / (level.alpha**2 * data_variance + noise_variance)


def shift(state: StepState) -> Tensor:
    """Return Δ for a scale of 1, of the shape of the sample."""
    w = posterior_variance(state.level, state.data_variance)
    return w * state.gradient(state.x0)
