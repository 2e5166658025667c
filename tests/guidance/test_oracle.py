"""The Gaussian oracle: guidance against a tilted distribution that is known in closed form.

Data N(μ, s²) with the linear reward r(x₀) = tilt·x₀ is tilted to N(μ + tilt·s², s²), and the ideal denoiser is known.
Both modes must turn the ideal denoiser of the data into that of the tilted data. Every scheduler is linear here, so
this is an identity to rounding, not a statistic: guided and unguided means are the same multiple of the true means.
"""

import functools
import math

import pytest
import torch
from helpers.gaussian import MEAN, STD, TILT, TILTED_MEAN, centered, final_alpha, guided, make_pipe, peer_level, sample
from helpers.scheduler_matrix import FEW, ONE_EACH, SETTINGS, matrix

from clip_guidance.guidance import UnsupportedSchedulerError

modes = pytest.mark.parametrize("mode", ["x0", "exact"])
#: A variant moves the sigmas, and a prediction is converted at whatever sigma: one prediction a variant will do here.
FIRST = {(s.scheduler, s.note): s for s in reversed(SETTINGS)}
ROWS = [s for s in SETTINGS if not s.note or FIRST[s.scheduler, s.note] is s]
#: Of the shift in units of the true one. "exact" differentiates epsilon at σ = 157 too, where 1 − σ·∂ε/∂x is 3e-5:
#: the scheduler's own rounding in float32 is seen there.
TOLERANCE = {"x0": 2e-5, "exact": 5e-4}

#: One of each kind of arithmetic; the others are not run as long.
LONG = {
    *("DDIM", "DDPM", "PNDM", "EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep", "UniPCMultistep", "EDMEuler"),
    *("CMStochasticIterative", "LCM", "SCM", "UnCLIP", "FlowMatchEulerDiscrete", "LTXEulerAncestralRF"),
}
STEPS = 12


@functools.cache
def unguided(setting):
    """The pipe, samples of centered data and samples."""
    pipe = make_pipe(setting)
    return pipe, centered(pipe, STEPS), sample(pipe, STEPS)


@modes
@matrix(ROWS, default=ONE_EACH[::2])
def test_guided_mean_is_as_close_as_the_unguided(setting, mode):
    pipe, noise, samples = unguided(setting)
    if setting.scheduler == "SCMScheduler" and mode == "exact":
        with pytest.raises(UnsupportedSchedulerError, match="SCMScheduler computes.*its own copy.*Use mode='x0'"):
            guided(pipe, STEPS, mode=mode)
        return
    own = ((samples - noise) / MEAN).mean().item()
    both = (guided(pipe, STEPS, mode=mode) - noise) / TILTED_MEAN
    print(f"\n{setting.name}, {mode}: unguided {own:.6f}, guided {both.mean().item():.6f} of the truth", end="")
    # Where the steps are too coarse for a solver (SASolver with beta sigmas), samples grow, and rounding with them.
    assert both.tolist() == pytest.approx([own] * 2, abs=TOLERANCE[mode] * max(1, noise.abs().max().item()))


#: Rows of the schedulers that few-step models come with; the default run has LCM alone.
FEW_STEP_ROWS = [s for s in SETTINGS if s.scheduler.startswith(("LCM", "TCD", "FlowMatch")) and not s.note]


@modes
@pytest.mark.parametrize("steps", [2, 4, 8])
@matrix(FEW_STEP_ROWS, default=FEW_STEP_ROWS[:1])
def test_few_steps_are_guided_as_exactly_as_many(setting, steps, mode):
    pipe = make_pipe(setting)
    noise = centered(pipe, steps)
    own = ((sample(pipe, steps) - noise) / MEAN).mean().item()
    both = (guided(pipe, steps, mode=mode) - noise) / TILTED_MEAN
    assert both.tolist() == pytest.approx([own] * 2, abs=TOLERANCE[mode])
    assert own > 0.5


def own_error(pipe, noise, steps):
    """Relative error of the unguided mean from a start of the right mean, but for the noise that the run ends with."""
    mean = (sample(pipe, steps, start=MEAN) - noise).mean().item()
    return abs(mean / MEAN - final_alpha(pipe.scheduler))


@matrix(ROWS)
def test_unguided_mean_is_the_true_one_but_for_what_the_run_leaves_out(setting):
    """It may end with noise, σ > 0; it starts without the mean α_T·μ; and its steps are coarse."""
    pipe, noise, samples = unguided(setting)
    error = own_error(pipe, noise, STEPS)
    assert error < 0.03 or own_error(pipe, centered(pipe, 4 * STEPS), 4 * STEPS) < error / 2
    # The exact solution of the ODE turns a start that is off by α_T·μ into an end that is off by this fraction of μ;
    # noise that is drawn on the way lets the run forget it.
    alpha, sigma = peer_level(pipe.scheduler, 0, pipe.scheduler.timesteps[0])
    missing = STD * alpha / math.hypot(alpha * STD, sigma)
    mean, last = (samples - noise).mean().item() / MEAN, final_alpha(pipe.scheduler)
    allowed = max(0.03, 1.5 * error)
    assert last - missing - allowed < mean < last + allowed


def strengths(setting, counts):
    """The shift of the mean in units of the true one, at numbers of steps that the scheduler runs with."""
    pipe, (fewest, most) = make_pipe(setting), setting.steps
    counts = sorted({min(max(count, fewest), most) for count in counts})
    shifts = [(guided(pipe, steps) - sample(pipe, steps)).mean().item() for steps in counts]
    return [shift / (TILT * STD**2) for shift in shifts]


@matrix([setting for setting in ONE_EACH if setting.scheduler != "IPNDMScheduler"], default=FEW[:1])
def test_strength_does_not_depend_on_the_number_of_steps(setting):
    found = strengths(setting, (4, 20, 200) if setting.scheduler.removesuffix("Scheduler") in LONG else (4, 20))
    assert max(found) / min(found) < 1.05
    assert found == pytest.approx([1] * len(found), abs=0.07)


@matrix([setting for setting in ONE_EACH if setting.scheduler == "IPNDMScheduler"])
def test_ipndm_loses_one_step_of_guidance(setting):
    """Its first step is at α = 0 by a formula that reads no prediction: it moves as if x̂₀ were 0, guided or not."""
    counts = (4, 20, 200)
    lost = [(1 - found) * steps for found, steps in zip(strengths(setting, counts), counts, strict=True)]
    assert lost == pytest.approx([1] * 3, abs=0.2)
    x = torch.ones(1)

    def following(index, output):
        scheduler = setting.make()
        scheduler.set_timesteps(4)
        scheduler.set_begin_index(index)
        return scheduler.step(output * x, scheduler.timesteps[index], x).prev_sample

    assert following(0, 1.0) == following(0, 0.0)
    assert following(1, 1.0) != following(1, 0.0)


@matrix([setting for setting in SETTINGS if setting.steps != (1, 1000)])
def test_no_other_number_of_steps_runs(setting):
    fewest, most = setting.steps
    for steps in {fewest, min(most, 50)}:
        assert sample(make_pipe(setting), steps).isfinite().all()
    for steps in {fewest - 1, most + 1} - {0, 1001}:
        with pytest.raises((ValueError, ZeroDivisionError, RuntimeWarning)):
            sample(make_pipe(setting), steps)
