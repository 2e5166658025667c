"""Guidance of two to eight steps: modes and methods beside "x0" and "exact", and models that were distilled.

What "x0" and "exact" do with every scheduler of few-step models is in test_oracle.py. A distilled model's x̂₀ is no mean
but leads along the trajectory: to its end (a consistency function, sampled by LCM), or to the level of the next step.
"""

import functools
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import LCMScheduler, TCDScheduler
from helpers.factories import generate
from helpers.gaussian import MEAN, STD, TILT, TILTED_MEAN, GaussianDenoiser, guided, initial, make_pipe, sample, tilt
from helpers.scheduler_matrix import SETTINGS, STABLE_DIFFUSION, TRAILING, Setting, matrix

from clip_guidance.guidance import Guidance
from clip_guidance.guidance.methods import Tilt, UniversalGuidance

ROWS = [s for s in SETTINGS if s.scheduler.startswith(("LCM", "TCD", "FlowMatch")) and not s.note]
few = pytest.mark.parametrize("steps", [2, 4, 8])


@pytest.mark.slow
@few
@pytest.mark.parametrize(("mode", "same"), [(Tilt(3), "x0"), (UniversalGuidance(forward=1.0), "exact")])
@matrix(ROWS)
def test_methods_for_all_schedulers_tilt_as_the_modes_do(setting, mode, same, steps):
    """Of a linear reward; where the modes lead, test_oracle.py asserts."""
    expected = guided(make_pipe(setting), steps, mode=same)
    found = guided(make_pipe(setting), steps, mode=mode)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.slow
@few
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("mode", ["x0", "exact"])
def test_tcd_is_guided_alike_with_any_share_of_noise(mode, gamma, steps):
    """The guided mean is that of the tilted data's own denoiser, from the same noise."""
    pipe = make_pipe(Setting("TCDScheduler", "epsilon"))
    step = pipe.scheduler.step
    pipe.scheduler.step = functools.wraps(step)(lambda *args, **options: step(*args, **{"eta": gamma, **options}))
    found = guided(pipe, steps, mode=mode)
    pipe.unet.mean = TILTED_MEAN
    assert found.tolist() == pytest.approx(sample(pipe, steps).tolist(), abs=5e-4)


class Trajectory(GaussianDenoiser):
    """The x̂₀ by which one step of DDIM goes where the probability flow goes, to the level ``end``."""

    end = (1.0, 0.0)

    def clean(self, x):
        (alpha, sigma), (alpha_end, sigma_end) = self.level, self.end
        spread, ratio = (math.hypot(a * self.std, s) for a, s in (self.level, self.end)), sigma_end / sigma
        before, after = spread
        x_end = alpha_end * self.mean + after / before * (x - alpha * self.mean)
        return (x_end - ratio * x) / (alpha_end - ratio * alpha)


def drawn(setting, steps, mean=MEAN, **options):
    """Samples of a student of exactly these steps, from two noises."""
    scheduler = setting.make()
    pipe = SimpleNamespace(scheduler=scheduler, unet=Trajectory(scheduler, setting.prediction))
    pipe.unet.mean = mean
    scheduler.set_timesteps(steps)
    levels = levels_of(scheduler)
    with Guidance(tilt, **{"space": "latent", "data_variance": STD**2, **options}).attach(pipe), torch.no_grad():
        x = initial(scheduler, 2)
        for i, t in enumerate(scheduler.timesteps):
            pipe.unet.level, pipe.unet.end = levels[i : i + 2]
            x = scheduler.step(
                pipe.unet(x, t), t, x, **({} if hasattr(scheduler, "sigmas") else {"eta": 0.0})
            ).prev_sample
    return x.flatten()


def levels_of(scheduler):
    """(α, σ) before each step, and after the last; TCD ends at the first timestep, whose noise is hardly any."""
    if hasattr(scheduler, "sigmas"):
        return [(1 - sigma, sigma) for sigma in scheduler.sigmas.tolist()]
    products = scheduler.alphas_cumprod[scheduler.timesteps].tolist()
    products.append(scheduler.alphas_cumprod[0].item() if isinstance(scheduler, TCDScheduler) else 1.0)
    return [(math.sqrt(each), math.sqrt(1 - each)) for each in products]


STUDENTS = [
    Setting(
        "DDIMScheduler", "epsilon", {**STABLE_DIFFUSION, **TRAILING, "set_alpha_to_one": True, "clip_sample": False}
    ),
    Setting("TCDScheduler", "epsilon", STABLE_DIFFUSION),
    Setting("FlowMatchEulerDiscreteScheduler", "flow_prediction", {"shift": 3.0}),
]


@pytest.mark.parametrize("steps", [4, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (1, 2, 8))])
@matrix(STUDENTS, default=STUDENTS[:1])
def test_a_student_of_the_trajectory_is_tilted_by_up_to_a_quarter_more(setting, steps):
    """By w = s²(1 − ρ²), where a step from level t to e owes s²·(α_e − ρ'α_t)/(α_e − α_t·σ_e/σ_t), ρ' = V_e/V_t."""
    scheduler, shift = setting.make(), 0.0
    scheduler.set_timesteps(steps)
    levels = levels_of(scheduler)
    for (alpha, sigma), (alpha_end, sigma_end) in itertools.pairwise(levels):
        before, after = (math.hypot(a * STD, s) for a, s in ((alpha, sigma), (alpha_end, sigma_end)))
        w = (STD * sigma / before) ** 2
        shift = after / before * shift + (alpha_end - alpha * sigma_end / sigma) * TILT * w
    found = (drawn(setting, steps) - drawn(setting, steps, scale=0.0)).mean().item()
    assert found == pytest.approx(shift, rel=1e-3)
    assert 0.99 < found / (TILT * STD**2) < 1.26


@pytest.mark.slow
@few
@pytest.mark.parametrize("setting", STUDENTS, ids=lambda setting: setting.scheduler)
def test_exact_takes_a_student_of_the_trajectory_too_far_but_no_further_than_its_bound(setting, steps):
    shift = TILT * STD**2
    exact, x0 = (
        (drawn(setting, steps, mode=mode) - drawn(setting, steps, scale=0.0)).mean().item() / shift
        for mode in ("exact", "x0")
    )
    assert x0 - 1e-3 <= exact < 3.1  # three standard deviations, 3·STD, are 2.5 of the true shift


@pytest.mark.slow
@few
@pytest.mark.parametrize("mode", ["x0", "exact"])
@pytest.mark.parametrize("scheduler", [LCMScheduler, TCDScheduler])
def test_a_stock_pipeline_of_few_steps_gets_what_the_reward_likes(tiny_pipeline, scheduler, mode, steps):
    def reward(images):
        return images[:, 0].sum((1, 2))

    pipe = tiny_pipeline()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    rewards = []
    for scale in (-100.0, 0.0, 100.0):  # the tiny decoder hardly moves
        with Guidance(reward, scale, mode).attach(pipe):
            rewards.append(reward(generate(pipe, steps=steps, output_type="pt", guidance_scale=1.0)).item())
    assert rewards == sorted(rewards) and rewards[2] - rewards[0] > 0.1
