"""The reward of a noisy x̂₀, averaged over the noise, as LGD-MC and TFG smooth it.

r̃(x₀) = log (1/n)·Σ_j exp r(x₀ + σε_j),    ∇r̃ = Σ_j softmax_j(r_j)·∇r_j,    ε_j ~ N(0, I)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clip_guidance.guidance.modes.base import RewardGradient


@dataclass(frozen=True)
class Smoothing:
    """Average a reward over noisy copies of the clean sample.

    The noise comes from a generator that starts anew from the seed and the timestep at every step, so that the
    sampler's own noise stays as it is and a run can be repeated; every sample of a batch is given the same noise, so
    that no sample depends on its neighbours.

    Args:
        samples: Number n of noisy copies.
        seed: Seed of the noise.
    """

    samples: int
    seed: int = 0

    def gradient(
        self,
        reward_gradient: Callable[[Tensor], RewardGradient],
        x0: Tensor,
        sigma: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Return ∇r̃ at clean samples (B, ...)."""
        if sigma == 0:
            return reward_gradient(x0).gradient
        # Only one copy's activations are in memory at a time.
        found = [reward_gradient(x0 + sigma * noise) for noise in self.noise(x0, generator)]
        weights = torch.stack([each.rewards for each in found]).to(x0).softmax(0)
        gradients = torch.stack([each.gradient for each in found])
        return (weights.view(*weights.shape, *[1] * (x0.ndim - 1)) * gradients).sum(0)

    def generator(self, timestep: float | None) -> torch.Generator:
        """Make the generator of the step at ``timestep``."""
        return torch.Generator().manual_seed(1_000_003 * self.seed + int(timestep or 0))

    def noise(self, x0: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Draw n tensors (1, ...) of the shape of one sample."""
        shape = (1, *x0.shape[1:])
        return [torch.randn(shape, generator=generator).to(x0) for _ in range(self.samples)]
