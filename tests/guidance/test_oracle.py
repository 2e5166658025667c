"""The Gaussian oracle: guidance against a tilted distribution that is known in closed form.

Data N(μ, s²) with the linear reward r(x₀) = tilt·x₀ is tilted to N(μ + tilt·s², s²), and the ideal denoiser
is known. Both modes must turn the ideal denoiser of the data into that of the tilted data. Every scheduler is
linear here, so this is an identity to rounding, not a statistic: guided and unguided means are the same
multiple of the true means. That multiple is below 1 because sampling starts at mean 0 instead of α_T·μ.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_pipeline import make_scheduler
from torch import nn

from clip_guidance.guidance import Guidance

MEAN, STD, TILT = 0.3, 0.8, 1.5
TILTED_MEAN = MEAN + TILT * STD**2  # 1.26
SCHEDULERS = ["ddim", "euler", "dpm"]
SETTINGS = [*((s, p) for s in SCHEDULERS for p in ("epsilon", "v_prediction")), ("dpm", "flow_prediction")]
settings = pytest.mark.parametrize(("scheduler", "prediction"), SETTINGS)
modes = pytest.mark.parametrize("mode", ["x0", "exact"])


class GaussianDenoiser(nn.Module):
    """E[x₀ | x] for N(MEAN, STD²) data, as any prediction, from the input that a network would receive."""

    def __init__(self, scheduler):
        super().__init__()
        self.scheduler = scheduler
        self.ratios = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().numpy()  # σ/α

    def level(self, t):
        if self.scheduler.config.prediction_type == "flow_prediction":
            sigma = self.scheduler.sigmas[(self.scheduler.timesteps == t).nonzero().item()].item()
            return 1 - sigma, sigma
        ratio = np.interp(float(t), np.arange(len(self.ratios)), self.ratios)
        alpha = 1 / math.sqrt(1 + ratio**2)
        return alpha, ratio * alpha

    def forward(self, x, t):
        alpha, sigma = self.level(t)
        x0 = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        epsilon = (x - alpha * x0) / sigma
        outputs = {
            "epsilon": epsilon,
            "v_prediction": alpha * epsilon - sigma * x0,
            "flow_prediction": epsilon - x0,
        }
        return outputs[self.scheduler.config.prediction_type]


def make_pipe(scheduler, prediction="epsilon", spacing="trailing"):
    """A bare object with a scheduler and a denoiser, which is all that guidance needs."""
    config = {"use_flow_sigmas": True} if prediction == "flow_prediction" else {}
    scheduler = make_scheduler(scheduler, prediction_type=prediction, timestep_spacing=spacing, **config)
    return SimpleNamespace(scheduler=scheduler, unet=GaussianDenoiser(scheduler))


def sample(pipe, steps, start_mean=0.0):
    """Mean and standard deviation of the samples, from standard noise around α_T·start_mean.

    Everything is linear, so the two points mean ± std carry both.
    """
    scheduler = pipe.scheduler
    scheduler.set_timesteps(steps)
    alpha, _ = pipe.unet.level(scheduler.timesteps[0])
    center = start_mean * (1 if type(scheduler).__name__.startswith("Euler") else alpha)
    x = center + torch.tensor([1.0, -1.0]).view(2, 1, 1, 1) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(pipe.unet(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    return x.mean().item(), (x[0] - x[1]).item() / 2


def tilt(x):
    return TILT * x.flatten(1).sum(1)


def guided(pipe, steps, start_mean=0.0, **options):
    options = {"space": "latent", "data_variance": STD**2, **options}
    with Guidance(tilt, **options).attach(pipe), torch.no_grad():
        return sample(pipe, steps, start_mean)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [10, 30, 100])
@modes
@settings
def test_guided_mean_is_as_close_as_the_unguided(scheduler, prediction, mode, steps, spacing):
    pipe = make_pipe(scheduler, prediction, spacing)
    mean, std = sample(pipe, steps)
    guided_mean, guided_std = guided(pipe, steps, mode=mode)
    print(
        f"\n{scheduler:5} {prediction:15} {mode:5} {spacing:8} {steps:3} steps: "
        f"unguided {mean:.4f} ± {std:.4f}, guided {guided_mean:.4f} ± {guided_std:.4f}",
        end="",
    )
    assert guided_mean / TILTED_MEAN == pytest.approx(mean / MEAN, abs=2e-5)
    assert guided_std == pytest.approx(std, abs=2e-5)


@settings
def test_shortfall_is_the_missing_terminal_mean(scheduler, prediction):
    """From N(0, 1) the exact solution reaches 1 − s·α_T/√(α_T²s² + σ_T²) of any mean."""
    pipe = make_pipe(scheduler, prediction)
    mean, _ = guided(pipe, steps=200)
    alpha, sigma = pipe.unet.level(pipe.scheduler.timesteps[0])
    factor = 1 - STD * alpha / math.sqrt(alpha**2 * STD**2 + sigma**2)
    assert mean == pytest.approx(factor * TILTED_MEAN, abs=0.01)


@pytest.mark.parametrize("steps", [4, 10, 50, 200])
@modes
@settings
def test_started_at_the_tilted_terminal_mean_it_is_exact(scheduler, prediction, mode, steps):
    mean, _ = guided(make_pipe(scheduler, prediction), steps, start_mean=TILTED_MEAN, mode=mode)
    assert mean == pytest.approx(TILTED_MEAN, abs=2e-5)


@modes
@settings
def test_strength_does_not_depend_on_the_number_of_steps(scheduler, prediction, mode):
    means = [guided(make_pipe(scheduler, prediction), steps, mode=mode)[0] for steps in (4, 10, 50, 200)]
    assert max(means) / min(means) < 1.06


@modes
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_strength_does_not_depend_on_every(scheduler, mode):
    means = [guided(make_pipe(scheduler), 20, mode=mode, every=every)[0] for every in (1, 2, 7)]
    assert means == pytest.approx(means[:1] * 3, abs=1e-5)


@modes
def test_mean_is_linear_in_scale(mode):
    pipe = make_pipe("dpm")
    unguided, _ = sample(pipe, 20)
    shifts = [guided(pipe, 20, mode=mode, scale=scale)[0] - unguided for scale in (-1.0, 0.0, 0.5, 2.0)]
    assert shifts == pytest.approx([c * shifts[3] / 2 for c in (-1.0, 0.0, 0.5, 2.0)], abs=1e-5)
    assert shifts[3] > 1


def test_two_guidances_add_their_rewards():
    pipe = make_pipe("dpm")
    expected, _ = guided(pipe, 20)
    scales_and_modes = [(0.25, "exact"), (0.25, "x0"), (0.5, "exact")]
    parts = [Guidance(tilt, s, m, space="latent", data_variance=STD**2) for s, m in scales_and_modes]
    with parts[0].attach(pipe), parts[1].attach(pipe), parts[2].attach(pipe):
        mean, _ = sample(pipe, 20)
    assert mean == pytest.approx(expected, abs=1e-5)


def test_data_variance_matters_to_x0_alone():
    pipe = make_pipe("euler")
    x0 = [guided(pipe, 20, mode="x0", data_variance=variance)[0] for variance in (0.25, 0.64, 1.0)]
    exact = [guided(pipe, 20, mode="exact", data_variance=variance)[0] for variance in (0.25, 0.64, 1.0)]
    assert x0[0] < x0[1] < x0[2]
    assert exact == [exact[0]] * 3
    assert x0[1] == pytest.approx(exact[1], abs=1e-5)
