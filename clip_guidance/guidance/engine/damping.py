"""Damping: what the reward's curvature leaves of a shift.

To first order, tilting p(x₀) by exp(scale·r) moves the mean by scale·w·∇r, with the posterior variance w. A reward that
bends overshoots with that. Where r falls off as −κ‖x₀ − a‖², the product of two Gaussians is known in closed form, and
its mean is

    x̂₀ + scale·w·∇r(x̂₀) / (1 + 2·scale·κ·w),    w = s²σ²/(α²s² + σ²)

("Are we really tilting?", 2026, arXiv:2606.02884, has the same factor for flow models). The factor is 1 for a linear
reward, κ = 0, and near 1 at low noise, where w is small. A negative scale is damped as the positive one of its size:
the closed form has no mean there once the tilt is stronger than the posterior.
"""

from torch import Tensor

from clip_guidance.guidance.per_sample import per_sample


def damped(shift: Tensor, scale: Tensor, curvature: float, variance: float) -> Tensor:
    """Return what damping leaves of shifts (B, ...).

    Args:
        shift: The shifts, with the scale in them.
        scale: Strength of the tilt of each sample, (B,).
        curvature: κ, at least 0.
        variance: The posterior variance w.
    """
    return shift / per_sample(1 + 2 * curvature * variance * scale.abs().to(shift), shift)
