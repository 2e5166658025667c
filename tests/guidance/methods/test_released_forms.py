"""The methods of the papers in float64, with copies of noise and recurrence, against the rules of the released program.

The rules are those of the program of TFG's authors (github.com/YWolfeee/Training-Free-Guidance), written out from their
papers with autograd through a denoiser that is no linear map, and given the same draws. The tables of the schedulers
are in float64, so that nothing but its rounding is left.
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from helpers.reference_samplers import BETAS

from clip_guidance.guidance import Guidance
from clip_guidance.guidance.methods import DPS, LGDMC, MPGD, TFG, UniversalGuidance, recurrent

STEPS, SHAPE, STD, SEED = 6, (2, 3, 4), 0.4, 5
MODE, TARGET, START = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
MODE, TARGET = MODE[0], TARGET[0]
slow = pytest.mark.slow
samplers = pytest.mark.parametrize(
    ("eta", "ddpm"), [(1.0, False), pytest.param(0.0, False, marks=slow), pytest.param(1.0, True, marks=slow)]
)


def clean(x, bar):
    """E[x₀ | x] of data ½N(m, s²) + ½N(−m, s²), where m is an image."""
    variance = bar * STD**2 + 1 - bar
    side = (math.sqrt(bar) / variance * (x * MODE).sum((1, 2), keepdim=True)).tanh()
    return (math.sqrt(bar) * STD**2 * x + (1 - bar) * side * MODE) / variance


def reward(x):
    """Negative, with a gradient and a curvature of its own everywhere."""
    return -0.1 * ((1.5 * x).sin() + 0.3 * x.roll(1, -1) - TARGET).square().sum((-1, -2)) - 0.2


def slope(value, x):
    """The gradient of ``value`` at ``x``, a sample at a time."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(value(x).sum(), x)[0]


@dataclass
class Step:
    """The papers' symbols: ``bar`` is ᾱ_t, ``bar_next`` is ᾱ_{t−1}, ``share`` is α_t over its mean over the steps."""

    x: torch.Tensor
    bar: float
    bar_next: float
    tau: float
    z: torch.Tensor
    copies: torch.Tensor
    share: float

    def __post_init__(self):
        self.x0 = clean(self.x, self.bar)
        self.eps = (self.x - math.sqrt(self.bar) * self.x0) / math.sqrt(1 - self.bar)

    def ddim(self, x0, eps):
        direction = math.sqrt(max(1 - self.bar_next - self.tau**2, 0))
        return math.sqrt(self.bar_next) * x0 + direction * eps + self.tau * self.z

    def at_x(self, value):
        """∇_{x_t} value(x̂₀(x_t))."""
        return slope(lambda x: value(clean(x, self.bar)), self.x)

    def smoothed(self, std):
        """Make r̃ of the draws of this step."""
        return lambda x0: torch.stack([reward(x0 + std * each) for each in self.copies]).exp().mean(0).log()


def tfg(s):
    smoothed, z = s.smoothed(0.5 * math.sqrt(1 - s.bar)), s.x0
    for _ in range(3):
        z = z + 0.4 * slope(smoothed, z)
    delta_t, delta_0 = 0.6 * s.share * s.at_x(smoothed), z - s.x0
    return s.ddim(s.x0, s.eps) + delta_t / math.sqrt(s.bar / s.bar_next) + math.sqrt(s.bar_next) * delta_0


def lgd(s):
    gradient = s.at_x(s.smoothed(math.sqrt(1 - s.bar)))
    strength = 0.9 * len(s.copies)  # the released program divides by n again
    return s.ddim(s.x0, s.eps) + strength * gradient / len(s.copies)


def freedom(s):
    return s.ddim(s.x0, s.eps) + 0.6 * s.at_x(reward)


def dps(s):
    norm = reward(s.x0).abs().view(-1, 1, 1)
    return s.ddim(s.x0, s.eps) + 0.3 * s.at_x(reward) / norm


def mpgd(s):
    return s.ddim(s.x0 + 0.5 * slope(reward, s.x0), s.eps)


def universal(s):
    eps, z = s.eps - 0.7 * math.sqrt(1 - s.bar) * s.at_x(reward), s.x0
    for _ in range(2):
        z = z + 0.4 * slope(reward, z)
    eps = eps - math.sqrt(s.bar / (1 - s.bar)) * (z - s.x0)
    return s.ddim((s.x - math.sqrt(1 - s.bar) * eps) / math.sqrt(s.bar), eps)


RELEASED = {
    "tfg": (TFG(0.6, 0.4, 0.5, samples=3, iterations=3, mu_schedule="constant", seed=SEED), tfg, 3),
    "lgd": (LGDMC(0.9, samples=4, seed=SEED), lgd, 4),
    "lgd-of-one": (LGDMC(0.9, samples=1, seed=SEED), lgd, 1),
    "freedom": (DPS(0.6), freedom, 0),
    "mpgd": (MPGD(0.5), mpgd, 0),
    "universal": (UniversalGuidance(0.7, 2, 0.4), universal, 0),
}


def released(scheduler, update, eta, times, samples):
    """x₀ by ``update(step) -> x_{t−1}``, with each step taken ``times`` times."""
    bars, length = scheduler.alphas_cumprod.tolist(), 1000 // STEPS
    levels = [(t, bars[t], bars[t - length] if t >= length else 1.0) for t in scheduler.timesteps.tolist()]
    mean = sum(bar / bar_next for _, bar, bar_next in levels) / STEPS
    x, noise, renoise = START, torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    for t, bar, bar_next in levels:
        for repeat in range(times):
            generator = torch.Generator().manual_seed(1_000_003 * SEED + t + 10_007 * repeat)
            copies = torch.stack([torch.randn((1, *SHAPE[1:]), generator=generator) for _ in range(samples)] or [START])
            tau = eta * math.sqrt((1 - bar_next) / (1 - bar) * (1 - bar / bar_next))
            z = torch.randn(SHAPE, generator=noise, dtype=torch.float64) if eta else torch.zeros(SHAPE)
            x = update(Step(x, bar, bar_next, tau, z, copies.double(), bar / bar_next / mean))
            if repeat + 1 < times:
                n = torch.randn(SHAPE, generator=renoise).double()
                x = math.sqrt(bar / bar_next) * x + math.sqrt(1 - bar / bar_next) * n
    return x


class Denoiser(torch.nn.Module):
    def __init__(self, scheduler):
        super().__init__()
        self.bars = scheduler.alphas_cumprod

    def forward(self, x, t):
        bar = self.bars[t].item()
        return (x - math.sqrt(bar) * clean(x, bar)) / math.sqrt(1 - bar)


def make_scheduler(ddpm=False):
    scheduler = (DDPMScheduler if ddpm else DDIMScheduler)(**BETAS, clip_sample=False)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(STEPS)
    return scheduler


def guided(scheduler, mode, eta, times=1, reward=reward):
    """x₀ through the plug-in and a stock scheduler."""
    pipe = SimpleNamespace(scheduler=scheduler, unet=Denoiser(scheduler))
    options = {"eta": eta} if isinstance(scheduler, DDIMScheduler) else {}
    x, generator = START, torch.Generator().manual_seed(1)
    with Guidance(reward, mode=mode, space="latent").attach(pipe), recurrent(scheduler, times, seed=2), torch.no_grad():
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            x = scheduler.step(pipe.unet(x, t), t, x, generator=generator, **options).prev_sample
    return x


def assert_equal(found, expected):
    assert found.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@samplers
@pytest.mark.parametrize("times", [pytest.param(1, marks=slow), 3])
@pytest.mark.parametrize("name", RELEASED)
def test_method_is_the_released_rule(name, times, eta, ddpm):
    mode, update, samples = RELEASED[name]
    scheduler = make_scheduler(ddpm)
    expected = released(scheduler, update, eta, times, samples)
    unguided = released(scheduler, lambda s: s.ddim(s.x0, s.eps), eta, times, samples)
    assert (expected - unguided).abs().max() > 0.01, "the comparison would see nothing"
    assert_equal(guided(scheduler, mode, eta, times), expected)


@samplers
def test_the_released_dps_is_that_of_the_logarithm_of_the_reward(eta, ddpm):
    scheduler = make_scheduler(ddpm)
    expected = released(scheduler, dps, eta, 1, 0)
    assert_equal(guided(scheduler, DPS(0.3), eta, reward=lambda x: -(-reward(x)).log()), expected)
    assert (guided(scheduler, DPS(0.3), eta) - expected).abs().max() > 0.01
