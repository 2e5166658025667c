"""Mode "x0": the reward's gradient at the predicted clean sample, weighted by its posterior variance.

Tilting p(x₀) by exp(r(x₀)) moves the posterior mean of x₀ by Var(x₀|x)·∇r to first order. With an isotropic
Gaussian prior of variance s² the posterior variance is known in closed form,

    Δ = w · ∇r(x̂₀),    w = s²σ²/(α²s² + σ²),

so nothing is differentiated through the denoiser. s² = 1 gives the r² of ΠGDM (Song et al. 2023,
"Pseudoinverse- Guided Diffusion Models for Inverse Problems"); differentiating at x̂₀ alone is MPGD's
shortcut (He et al. 2024, arXiv:2311.16424), whose constant weight w replaces.
"""

from collections.abc import Callable

from torch import Tensor

from clip_guidance.guidance.adapters.noise_level import NoiseLevel
from clip_guidance.guidance.adapters.prediction import Prediction
from clip_guidance.guidance.engine.gradient import RewardGradient


def posterior_variance(level: NoiseLevel, data_variance: float) -> float:
    """Var(x₀ | x) for x₀ of variance ``data_variance``: 0 at sigma = 0, ``data_variance`` at alpha = 0."""
    noise_variance = level.sigma**2
    return data_variance * noise_variance / (level.alpha**2 * data_variance + noise_variance)


def shift(
    prediction: Prediction, reward_gradient: Callable[[Tensor], RewardGradient], data_variance: float, tape: object
) -> Tensor:
    """Δ for a scale of 1, of the shape of the sample; ``tape`` is not used."""
    return posterior_variance(prediction.level, data_variance) * reward_gradient(prediction.x0).gradient
