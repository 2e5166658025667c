"""A mixture of two Gaussians with its ideal denoiser, where the tilted weights of the modes are known in closed form.

Data Σᵢ wᵢ·N(mᵢ, s²) with the linear reward r(x₀) = TILT·x₀ is tilted by exp(r) to the modes N(mᵢ + TILT·s², s²) with
weights in proportion to wᵢ·exp(TILT·mᵢ + TILT²·s²/2).
"""

import math

import torch

from helpers.gaussian import GaussianDenoiser, peer_level

MEANS, STD, WEIGHTS, TILT = (-1.0, 1.0), 0.25, (0.8, 0.2), 1.0
BETWEEN = TILT * STD**2  # the border between the tilted modes
_TILTED = [w * math.exp(TILT * m) for w, m in zip(WEIGHTS, MEANS, strict=True)]
#: Weight of the upper mode, of the data and of the tilted data.
UPPER, TILTED_UPPER = WEIGHTS[1], _TILTED[1] / sum(_TILTED)  # 0.2 and 0.649


def tilt(x):
    return TILT * x.flatten(1).sum(1)


class MixtureDenoiser(GaussianDenoiser):
    """E[x₀ | x] for the mixture."""

    def clean(self, x):
        alpha, sigma = self.level
        variance = alpha**2 * STD**2 + sigma**2
        modes = [(w, m, x - alpha * m) for w, m in zip(WEIGHTS, MEANS, strict=True)]
        shares = torch.stack([math.log(w) - d**2 / (2 * variance) for w, _, d in modes]).softmax(0)
        within = torch.stack([m + alpha * STD**2 / variance * d for _, m, d in modes])
        return (shares * within).sum(0)


def sample(pipe, steps, count, seed=0, **options):
    """``count`` clean samples, (count,), in float64; ``options`` go to ``scheduler.step``."""
    scheduler, denoiser = pipe.scheduler, pipe.unet
    scheduler.set_timesteps(steps)
    x = torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x * scheduler.init_noise_sigma
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for i, t in enumerate(scheduler.timesteps):
            denoiser.level = peer_level(scheduler, i, t)
            x = scheduler.step(denoiser(scheduler.scale_model_input(x, t), t), t, x, **options).prev_sample
    return x.flatten()
