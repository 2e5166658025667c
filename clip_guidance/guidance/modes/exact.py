"""Mode "exact": the reward's gradient at the noisy sample, through the denoiser.

    Δ = (σ²/α) · (∂x̂₀/∂x)ᵀ ∇r(x̂₀)

By Tweedie's formula ∂x̂₀/∂x = (α/σ²)·Cov(x₀|x), so this is mode "x0" with the denoiser's own posterior
covariance in place of the isotropic one. The gradient is the one of DPS (Chung et al. 2023, arXiv:2209.14687),
the weight the one of classifier guidance (Dhariwal & Nichol 2021, arXiv:2105.05233). It costs one backward
through the denoiser and no second forward: :class:`~clip_guidance.guidance.engine.tape.DenoiserTape` records the
forward that the pipeline runs anyway. At α = 0 the sample holds nothing of x₀, and the mode falls back to "x0".
"""

from torch import Tensor

from clip_guidance.guidance.modes import x0
from clip_guidance.guidance.modes.base import StepState

_NO_SIGNAL = 2**-11  # of α/σ: diffusers writes a terminal signal-to-noise ratio of zero as α/σ = 2⁻¹²


def shift(state: StepState) -> Tensor:
    """Return Δ for a scale of 1, of the shape of the sample.

    ``data_variance`` matters only without a signal.
    """
    alpha, sigma = state.level.alpha, state.level.sigma
    if alpha <= _NO_SIGNAL * sigma:
        return x0.shift(state)
    return sigma**2 / alpha * state.vjp(state.gradient(state.x0))
