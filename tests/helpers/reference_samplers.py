"""Sampling as the papers write it, in plain float64 code that shares nothing with the package, and the harness."""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
from diffusers import DDIMScheduler, DDPMScheduler

from clip_guidance.guidance import Guidance
from clip_guidance.guidance.adapters.prediction import Prediction
from clip_guidance.guidance.adapters.schedulers import noise_level, prediction_type
from clip_guidance.guidance.modes import RewardGradient, StepState
from helpers.gaussian import MEAN, STD, GaussianDenoiser

STEPS, SHAPE = 8, (2, 3, 4)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CURVATURE, TARGET = 0.7, 1.2


def quadratic(x):
    """A reward whose gradient is not constant."""
    return -0.5 * CURVATURE * (x - TARGET).square().flatten(1).sum(1)


def gradient(x):
    return -CURVATURE * (x - TARGET)


def reward_gradient(x):
    """What a method is given."""
    return RewardGradient(gradient(x), quadratic(x))


def make_pipe(eta=1.0, prediction="epsilon", ddpm=False):
    cls, options = (DDPMScheduler, {}) if ddpm else (DDIMScheduler, {"set_alpha_to_one": True})
    scheduler = cls(**BETAS, **options, clip_sample=False, prediction_type=prediction)
    return SimpleNamespace(scheduler=scheduler, unet=GaussianDenoiser(scheduler, prediction), eta=eta)


def start():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def run(pipe, steps=STEPS):
    """The loop of a pipeline."""
    scheduler, x, generator = pipe.scheduler, start(), torch.Generator().manual_seed(1)
    scheduler.set_timesteps(steps)
    options = {"eta": pipe.eta} if isinstance(scheduler, DDIMScheduler) else {}
    with torch.no_grad():
        for t in scheduler.timesteps:
            alpha_prod = scheduler.alphas_cumprod[t].item()
            pipe.unet.level = math.sqrt(alpha_prod), math.sqrt(1 - alpha_prod)
            x = scheduler.step(pipe.unet(x, t), t, x, generator=generator, **options).prev_sample
    return x


@dataclass
class State:
    """At one step: the papers' symbols. ``bar`` is ᾱ_t, ``bar_next`` is ᾱ_{t−1}, ``jacobian`` is ∂x̂₀/∂x_t."""

    x: torch.Tensor
    x0: torch.Tensor
    eps: torch.Tensor
    jacobian: float
    bar: float
    bar_next: float
    tau: float
    z: torch.Tensor

    def ddim(self, x0=None, eps=None):
        x0, eps = self.x0 if x0 is None else x0, self.eps if eps is None else eps
        direction = math.sqrt(max(1 - self.bar_next - self.tau**2, 0))
        return math.sqrt(self.bar_next) * x0 + direction * eps + self.tau * self.z


def reference_samples(update, eta=1.0, steps=STEPS, times=1, window=(0, 1), seed=0):
    """x₀ by ``update(state) -> x_{t−1}``, with each step in the window taken ``times`` times."""
    betas = torch.linspace(BETAS["beta_start"] ** 0.5, BETAS["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    bars = (1 - betas).cumprod(0).tolist()
    x, noise, renoise = start(), torch.Generator().manual_seed(1), torch.Generator().manual_seed(seed)
    for i in range(steps):
        t = (steps - 1 - i) * (1000 // steps)
        bar, bar_next = bars[t], bars[t - 1000 // steps] if i + 1 < steps else 1.0
        repeats = times if window[0] <= i / steps < window[1] else 1
        for repeat in range(repeats):
            jacobian = math.sqrt(bar) * STD**2 / (bar * STD**2 + 1 - bar)
            x0 = MEAN + jacobian * (x - math.sqrt(bar) * MEAN)
            eps = (x - math.sqrt(bar) * x0) / math.sqrt(1 - bar)
            tau = eta * math.sqrt((1 - bar_next) / (1 - bar)) * math.sqrt(1 - bar / bar_next)
            # DDIM draws for η > 0 only
            z = torch.randn(SHAPE, generator=noise, dtype=torch.float64) if eta else torch.zeros(SHAPE)
            x = update(State(x, x0, eps, jacobian, bar, bar_next, tau, z))
            if repeat + 1 < repeats:
                n = torch.randn(SHAPE, generator=renoise)
                x = math.sqrt(bar / bar_next) * x + math.sqrt(1 - bar / bar_next) * n
    return x


def guided(pipe, mode, reward=quadratic, **options):
    """Samples, as a user takes them."""
    with Guidance(reward, mode=mode, space="latent", data_variance=STD**2, **options).attach(pipe):
        return run(pipe)


def assert_close(found, expected):
    """To the rounding of the scheduler's float32 tables."""
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def scheduler_of(cls=DDIMScheduler, steps=10, **config):
    scheduler = cls(**BETAS, clip_sample=False, **config)
    scheduler.set_timesteps(steps)
    return scheduler


def state_at(scheduler, index, shape=(2, 3, 4), reward_gradient=reward_gradient, **options):
    """What a mode is given at one step of a run: a random sample and model output, a denoiser of Jacobian ½."""
    generator = torch.Generator().manual_seed(index)
    output, x = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    t = scheduler.timesteps[index]
    prediction = Prediction(output, x, noise_level(scheduler, t), prediction_type(scheduler))
    state = StepState(prediction, t, scheduler, torch.ones(len(x)), 1.0, reward_gradient, vjp=lambda g: 0.5 * g)
    return replace(state, **options)
