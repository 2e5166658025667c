"""Mode "exact": the reward's gradient at the noisy sample, through the denoiser.

    Δ = (σ²/α) · (∂x̂₀/∂x)ᵀ ∇r(x̂₀)

By Tweedie's formula ∂x̂₀/∂x = (α/σ²)·Cov(x₀|x), so this is mode "x0" with the denoiser's own posterior
covariance in place of the isotropic one. The gradient is that of DPS (Chung et al. 2023, arXiv:2209.14687),
the weight that of classifier guidance (Dhariwal & Nichol 2021, arXiv:2105.05233). It costs one backward
through the denoiser and no second forward: :class:`~clip_guidance.guidance.engine.tape.DenoiserTape` records the
forward that the pipeline runs anyway. At α = 0 the sample holds nothing of x₀, and the mode falls back to "x0".
"""

from collections.abc import Callable

from torch import Tensor

from clip_guidance.guidance.adapters.prediction import Prediction
from clip_guidance.guidance.engine.gradient import RewardGradient
from clip_guidance.guidance.engine.tape import DenoiserTape
from clip_guidance.guidance.modes import x0

_NO_SIGNAL = 2**-11  # of α/σ: diffusers writes a terminal signal-to-noise ratio of zero as α/σ = 2⁻¹²


def shift(
    prediction: Prediction,
    reward_gradient: Callable[[Tensor], RewardGradient],
    data_variance: float,
    tape: DenoiserTape,
) -> Tensor:
    """Δ for a scale of 1, of the shape of the sample; ``data_variance`` matters only without a signal."""
    level = prediction.level
    if level.alpha <= _NO_SIGNAL * level.sigma:
        return x0.shift(prediction, reward_gradient, data_variance, tape)
    return level.sigma**2 / level.alpha * tape.vjp(prediction, reward_gradient(prediction.x0).gradient)
