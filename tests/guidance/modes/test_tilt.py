"""The tilt in several steps: what it must equal, what it tends to, and what it refuses."""

import math

import pytest
import torch
from helpers.factories import generate
from helpers.gaussian import guided, make_pipe
from helpers.scheduler_matrix import ONE_EACH, matrix

from clip_guidance.guidance import CLIPGuidance
from clip_guidance.guidance.adapters.noise_level import NoiseLevel
from clip_guidance.guidance.adapters.prediction import PREDICTION_TYPES, Prediction
from clip_guidance.guidance.methods import Tilt
from clip_guidance.guidance.modes import RewardGradient, StepState, x0

LEVEL, VARIANCE = NoiseLevel(0.6, 0.8), 0.64
SCALE = torch.tensor([3.0, 0.0, -2.0], dtype=torch.float64)


def state_of(reward_gradient, scale=SCALE):
    generator = torch.Generator().manual_seed(0)
    output, x = (torch.randn(3, 2, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    prediction = Prediction(output, x, LEVEL, PREDICTION_TYPES["epsilon"])
    return StepState(prediction, 500, None, scale, VARIANCE, reward_gradient, vjp=None)


def linear(x):
    slope = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).view_as(x[0])
    return RewardGradient(slope.expand_as(x), (slope * x).flatten(1).sum(1))


def quadratic(x):
    return RewardGradient(-x, -x.square().flatten(1).sum(1) / 2)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_linear_reward_does_not_feel_the_steps(steps):
    torch.testing.assert_close(Tilt(steps).shift(state_of(linear)), x0.shift(state_of(linear)))


def test_one_step_is_mode_x0():
    assert Tilt(1).shift(state_of(quadratic)).equal(x0.shift(state_of(quadratic)))


@pytest.mark.slow
@matrix(ONE_EACH)
def test_on_the_oracle_every_scheduler_lands_where_one_step_does(setting):
    """Where the tilted mean is, tests/guidance/test_oracle.py asserts of mode "x0"."""
    expected = guided(make_pipe(setting), 8)
    assert guided(make_pipe(setting), 8, mode=Tilt(3)).tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_a_quadratic_reward_shrinks_step_by_step(steps):
    """dz/ds = −w z: n of Euler's steps leave (1 − s w/n)^n of x̂₀."""
    state, weight = state_of(quadratic), x0.posterior_variance(LEVEL, VARIANCE)
    moved = state.x0 + SCALE.view(3, 1, 1) * Tilt(steps).shift(state)
    left = (1 - SCALE * weight / steps) ** steps
    torch.testing.assert_close(moved, left.view(3, 1, 1) * state.x0)


def test_many_steps_are_the_exact_path():
    state, weight = state_of(quadratic), x0.posterior_variance(LEVEL, VARIANCE)
    moved = state.x0 + SCALE.view(3, 1, 1) * Tilt(2000).shift(state)
    torch.testing.assert_close(moved, (-SCALE * weight).exp().view(3, 1, 1) * state.x0, rtol=2e-3, atol=0)


def test_a_strong_tilt_does_not_overshoot_in_several_steps():
    """One step of s w > 2 jumps over the reward's maximum and beyond; in as many as s w it never does."""
    weight = x0.posterior_variance(LEVEL, VARIANCE)
    state = state_of(quadratic, torch.full((3,), 10.0, dtype=torch.float64))
    assert 10 * weight > 2

    def largest(steps):
        return (state.x0 + 10 * Tilt(steps).shift(state)).abs().max() / state.x0.abs().max()

    assert largest(1) > 1 > largest(math.ceil(10 * weight))


@pytest.mark.slow
def test_scales_schedule_and_every_reach_it(tiny_pipeline, clip):
    """An image's tilt is that of its own scale, whatever its neighbour's."""
    pipe = tiny_pipeline()

    def images(scale, **options):
        guidance = CLIPGuidance(clip, "dog", scale=scale, mode=Tilt(2), **options)
        with guidance.attach(pipe):
            return generate(pipe, ["cat", "owl"], seeds=(0, 1), output_type="pt")

    for options in ({}, {"schedule": lambda fraction: 1 - fraction}, {"every": 2}):
        both = images([1.0, 4.0], **options)
        for i, scale in enumerate((1.0, 4.0)):
            torch.testing.assert_close(both[i], images(scale, **options)[i], atol=1e-5, rtol=0)
    assert not torch.allclose(images(2.0, schedule=lambda fraction: 2.0), images(2.0))


@pytest.mark.parametrize("steps", [0, -1, 1.5])
def test_steps_are_a_number(steps):
    with pytest.raises(ValueError, match="steps must be a whole number, at least 1, got"):
        Tilt(steps)
