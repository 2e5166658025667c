"""The reward of a noisy x̂₀, averaged over the noise, as LGD-MC and TFG smooth it.

r̃(x₀) = log (1/n)·Σ_j exp r(x₀ + σε_j),    ∇r̃ = Σ_j softmax_j(r_j)·∇r_j,    ε_j ~ N(0, I)

As in the program of TFG's authors, the ε_j are drawn once each time that a step is taken, and stay for all gradients of
it, so that mean guidance climbs one function. There each sample of a batch has draws of its own; here all share them,
so that no sample depends on its neighbours.
"""

import torch
from torch import Tensor

from clip_guidance.guidance.methods.recurrence import repetition
from clip_guidance.guidance.modes.base import StepState


def draw_noise(state: StepState, samples: int, seed: int) -> list[Tensor]:
    """Draw the ε_j of a step: ``samples`` tensors (1, ...) of the shape of one sample.

    They come from a generator that starts anew from the seed, the timestep and the repetition of the step, so that
    the sampler's own noise stays as it is and a run can be repeated.
    """
    timestep = int(state.level.timestep or 0)
    own = 1_000_003 * seed + timestep + 10_007 * repetition(state.scheduler, timestep)
    generator = torch.Generator().manual_seed(own)
    shape = (1, *state.x0.shape[1:])
    return [torch.randn(shape, generator=generator).to(state.x0) for _ in range(samples)]


def smoothed_gradient(state: StepState, x0: Tensor, sigma: float, noise: list[Tensor]) -> Tensor:
    """Return ∇r̃ at clean samples (B, ...).

    Args:
        state: The step.
        x0: Where the gradient is taken, (B, ...).
        sigma: Standard deviation σ of the noise; 0 leaves the reward as it is.
        noise: The ε_j of :func:`draw_noise`.
    """
    if sigma == 0:
        return state.gradient(x0)
    # Only one copy's activations are in memory at a time.
    found = [state.reward_gradient(x0 + sigma * each) for each in noise]
    weights = torch.stack([each.rewards for each in found]).to(x0).softmax(0)
    gradients = torch.stack([each.gradient for each in found])
    return (weights.view(*weights.shape, *[1] * (x0.ndim - 1)) * gradients).sum(0)
