"""Both ends of every scheduler's table: no root, quotient or logarithm of rounding makes anything infinite or none."""

import math

import pytest
import torch
from helpers.gaussian import set_timesteps
from helpers.scheduler_matrix import ONE_EACH, SETTINGS, matrix

from clip_guidance.guidance.adapters.prediction import Prediction
from clip_guidance.guidance.adapters.schedulers import noise_level, prediction_type
from clip_guidance.guidance.methods import DPS, LGDMC, MPGD, TFG, FreeDoM, Tilt, UniversalGuidance
from clip_guidance.guidance.modes import RewardGradient, StepState, find_mode
from clip_guidance.guidance.modes.x0 import posterior_variance

DDIM = [setting for setting in SETTINGS if setting.scheduler in ("DDIMScheduler", "DDPMScheduler")]
METHODS = [
    *(DPS(), LGDMC(samples=1), FreeDoM(rho_without=0.02), MPGD(0.1), MPGD(rho_without=1.0), Tilt(2)),
    *(TFG(samples=1, iterations=1), TFG(samples=1, iterations=1, rho_schedule="decrease", mu_schedule="decrease")),
    *(UniversalGuidance(1.0, 1), find_mode("exact"), find_mode("x0")),
]


def levels(setting, steps):
    """(the scheduler, timestep, level) of the first and the last steps of a run."""
    scheduler = setting.make()
    timesteps = set_timesteps(scheduler, steps)
    for index in sorted({0, 1, len(timesteps) - 2, len(timesteps) - 1} & set(range(len(timesteps)))):
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = index
        yield scheduler, timesteps[index], noise_level(scheduler, timesteps[index])


@matrix(SETTINGS, default=ONE_EACH)
def test_what_is_written_back_is_finite_in_half_precision(setting):
    """A shift of 1 per unit of variance; a consistency model's last c_out is 0, of which float32 left 1e-10."""
    for steps in {setting.steps[0], min(40, setting.steps[1])}:
        for scheduler, _, level in levels(setting, steps):
            if level.sigma == 0:
                continue
            kind, w = prediction_type(scheduler), posterior_variance(level, 1.0)
            assert 0 < w <= 1 and math.isfinite(level.sigma**2 / level.alpha if level.has_signal else 0)
            written = kind.write_back(torch.zeros(1, dtype=torch.float16), torch.tensor([w]), level)
            assert written.isfinite().all() and written.abs().max() < 1000


@pytest.mark.parametrize("correction", [None, torch.tensor([0.1, 0.0])], ids=["alone", "with-cfg"])
@matrix(DDIM, default=DDIM)
def test_every_method_is_finite_at_every_step_and_acts_in_every_run(setting, correction):
    acted = set()
    runs = {1, 2, 7}
    for steps in runs:
        for scheduler, timestep, level in levels(setting, steps):
            kind, generator = prediction_type(scheduler), torch.Generator().manual_seed(0)
            output, x = (torch.randn(2, 3, generator=generator) for _ in range(2))
            slope = kind.sample_weight(level) + 0.5 * kind.output_weight(level)
            for eta in (0.0, 1.0):
                state = StepState(
                    Prediction(output, x, level, kind),
                    timestep,
                    scheduler,
                    torch.ones(2),
                    1.0,
                    lambda z: RewardGradient(-z, -z.square().sum(1) / 2),
                    vjp=lambda g, slope=slope: slope * g,
                    eta=eta,
                    correction=correction,
                )
                shifts = [method.shift(state) for method in METHODS]
                assert all(shift.isfinite().all() for shift in shifts)
                acted |= {(steps, i) for i, shift in enumerate(shifts) if shift.all()}
    expected = {(steps, i) for steps in runs for i in range(len(METHODS))}
    if setting.note == "zero-snr":  # a single step from pure noise leaves nothing to a share of what is in the sample
        expected -= {(1, i) for i, method in enumerate(METHODS) if getattr(method, "rho_without", None)}
    if setting.config.get("set_alpha_to_one") is False:  # a single step at timestep 1 leads to timestep 0's level
        expected -= {(1, i) for i in range(len(METHODS))} - acted
    assert acted >= expected
