"""Where a method must equal another, and what it refuses."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from helpers.reference_samplers import (
    CURVATURE,
    assert_close,
    gradient,
    guided,
    make_pipe,
    quadratic,
    scheduler_of,
    state_at,
)

from clip_guidance.guidance import Guidance, UnsupportedSchedulerError
from clip_guidance.guidance.methods import DPS, LGDMC, MPGD, TFG, FreeDoM, UniversalGuidance, recurrent
from clip_guidance.guidance.methods.ddim import step_of
from clip_guidance.guidance.methods.smoothing import draw_noise, smoothed_gradient
from clip_guidance.guidance.methods.tfg import share

#: With the strengths of a run without classifier-free guidance, which they would warn of if they were left out.
FREEDOM, MPGD_RELATIVE = FreeDoM(rho_without=0.02), MPGD(rho_without=1.0)
CONSTANT = {"rho_schedule": "constant", "mu_schedule": "constant"}


# ---------------------------------------------------------------- a shift of x̂₀, and what DDIM makes of it


@pytest.mark.parametrize("index", [0, 4, 9])
@pytest.mark.parametrize(
    "config", [{}, {"set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "v_prediction"}]
)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_response_is_how_far_ddim_moves(index, config, eta):
    scheduler = scheduler_of(**config)
    assert_moves(scheduler, index, eta, eta=eta)


@pytest.mark.parametrize("index", [0, 4, 9])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_response_is_how_far_ddpm_moves_whatever_eta(index, eta):
    assert_moves(scheduler_of(DDPMScheduler), index, eta)


def assert_moves(scheduler, index, given, **options):
    state = state_at(scheduler, index, eta=given)
    prediction, step = state.prediction, step_of(state)
    delta = torch.full((2, 3, 4), 0.3, dtype=torch.float64)
    moved = prediction.kind.write_back(prediction.model_output, delta, prediction.level)
    before, after = (
        scheduler.step(
            output, state.timestep, state.sample, generator=torch.Generator().manual_seed(0), **options
        ).prev_sample
        for output in (prediction.model_output, moved)
    )
    torch.testing.assert_close(after - before, step.response * delta, rtol=2e-5, atol=0)
    assert step.response > 0


@pytest.mark.parametrize("method", [DPS(), LGDMC(), FREEDOM, MPGD(0.1), TFG()])
def test_a_step_that_stays_where_it_is_cannot_be_shifted(method):
    scheduler = scheduler_of(set_alpha_to_one=False)
    state = state_at(scheduler, 9)
    still = scheduler.step(state.prediction.model_output, state.timestep, state.sample).prev_sample
    torch.testing.assert_close(still, state.sample)
    assert not method.shift(state).any()


@pytest.mark.parametrize("correction", [None, torch.ones(2)])
@pytest.mark.parametrize("method", [FREEDOM, MPGD_RELATIVE, TFG(mu=0.0)])
def test_what_is_divided_by_alpha_rests_without_a_signal(method, correction):
    scheduler = scheduler_of(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing", set_alpha_to_one=True
    )
    shifts = [method.shift(state_at(scheduler, i, correction=correction)) for i in (0, 1)]
    assert scheduler.alphas_cumprod[scheduler.timesteps[0]] == 0
    assert not shifts[0].any() and shifts[1].isfinite().all() and shifts[1].all()


# ---------------------------------------------------------------- one method as another


@pytest.mark.parametrize("index", [0, 5, 9])
def test_tfg_of_rho_alone_is_dps_with_a_step_size_of_rho_over_root_alpha(index):
    state = state_at(scheduler_of(), index)
    zeta = 0.3 / math.sqrt(step_of(state).alpha_t)
    torch.testing.assert_close(TFG(0.3, 0.0, sigma=0.0, **CONSTANT).shift(state), DPS(zeta).shift(state))


def test_tfg_of_rho_alone_has_the_direction_of_freedom():
    state = state_at(scheduler_of(), 3)
    shifts = [method.shift(state).flatten(1) for method in (TFG(0.3, 0.0, sigma=0.0), FREEDOM)]
    cosines = torch.nn.functional.cosine_similarity(*shifts)
    torch.testing.assert_close(cosines, torch.ones_like(cosines))


def test_tfg_of_mu_alone_in_one_iteration_is_mpgd():
    pipe, method = make_pipe(), TFG(0.0, 0.1, sigma=0.0, iterations=1, **CONSTANT)
    assert not method.needs_tape
    torch.testing.assert_close(guided(pipe, method), guided(pipe, MPGD(0.1)))


@pytest.mark.parametrize("schedule", ["increase", "decrease"])
def test_tfg_schedules_have_mean_1_and_the_direction_of_their_name(schedule):
    scheduler = scheduler_of()
    shares = [share(schedule, step_of(state_at(scheduler, i)), scheduler) for i in range(10)]
    assert sum(shares) / 10 == pytest.approx(1, rel=1e-6)
    assert shares == sorted(shares, reverse=schedule == "decrease")
    assert shares[0] != pytest.approx(shares[-1], rel=1e-3)


def test_universal_without_backward_is_mode_exact():
    pipe = make_pipe()
    torch.testing.assert_close(guided(pipe, UniversalGuidance(0.4)), guided(pipe, "exact", scale=0.4))


def test_universal_is_the_sum_of_its_parts():
    state = state_at(scheduler_of(), 3)
    whole, forward, backward = (
        method.shift(state)
        for method in (UniversalGuidance(0.4, 2), UniversalGuidance(0.4), UniversalGuidance(0.0, 2))
    )
    torch.testing.assert_close(whole, forward + backward)
    assert [UniversalGuidance(0.4, 2).needs_tape, UniversalGuidance(0.0, 2).needs_tape] == [True, False]


def test_universal_backward_of_many_steps_finds_the_best_image():
    state = state_at(scheduler_of(), 3)
    shift = UniversalGuidance(0.0, 200, 0.5).shift(state)
    assert_close(gradient(state.x0 + shift), torch.zeros_like(shift))


@pytest.mark.parametrize("schedule", ["increase", "decrease"])
@pytest.mark.parametrize("config", [{}, {"set_alpha_to_one": False}, {"rescale_betas_zero_snr": True}])
def test_the_share_of_the_only_step_of_a_run_is_1(schedule, config):
    """Also where α_t is 0, without any signal, or 1, in a step that stays where it is: 0/0."""
    scheduler = scheduler_of(steps=1, prediction_type="v_prediction", timestep_spacing="trailing", **config)
    if "set_alpha_to_one" in config:
        scheduler.timesteps = torch.tensor([0])
    assert share(schedule, step_of(state_at(scheduler, 0)), scheduler) == 1


# ---------------------------------------------------------------- the smoothed reward


@pytest.mark.slow
def test_many_copies_give_the_gradient_of_the_expectation():
    """E exp(−k(x + σε − y)²/2) ∝ exp(−k(x − y)²/(2(1 + kσ²)))."""
    x0, sigma = torch.tensor([[0.3], [2.0]], dtype=torch.float64), 0.8
    state = state_at(scheduler_of(), 3, shape=(2, 1))
    found = smoothed_gradient(state, x0, sigma, draw_noise(state, 20000, seed=0))
    torch.testing.assert_close(found, gradient(x0) / (1 + CURVATURE * sigma**2), rtol=0.03, atol=0)


def test_noise_is_that_of_the_seed_the_timestep_and_the_repetition_for_every_sample():
    scheduler = scheduler_of()

    def drawn(index, seed=1):
        return draw_noise(state_at(scheduler, index), 2, seed)

    first, second = drawn(3)
    assert first.shape == (1, 3, 4) and not first.equal(second) and first.equal(drawn(3)[0])
    others = [drawn(4)[0], drawn(3, seed=2)[0]]
    with recurrent(scheduler, 2):
        scheduler.set_timesteps(10)
        scheduler.step_index = 6  # the fourth timestep for the first time
        assert first.equal(drawn(6)[0])
        scheduler.step_index = 7
        others.append(drawn(7)[0])
    assert not any(first.equal(each) for each in others)


@pytest.mark.parametrize("method", [LGDMC(samples=2), TFG(sigma=0.5)])
def test_a_sample_does_not_see_its_neighbours_and_the_samplers_noise_stays(method):
    scheduler = scheduler_of()
    both = state_at(scheduler, 3)
    of_both = both.prediction
    one = replace(both, prediction=replace(of_both, model_output=of_both.model_output[1:], sample=of_both.sample[1:]))
    random_state = torch.random.get_rng_state()
    shifts = [method.shift(each) for each in (both, one)]
    torch.testing.assert_close(shifts[0][1:], shifts[1])
    assert torch.random.get_rng_state().equal(random_state)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("method", [DPS(), LGDMC(), FreeDoM(), MPGD(), TFG()], ids=lambda method: type(method).__name__)
def test_other_schedulers_are_refused_when_attached(method):
    scheduler = EulerDiscreteScheduler()
    pipe = SimpleNamespace(scheduler=scheduler, unet=make_pipe().unet)
    message = f"{type(method).__name__} is defined.*DDIMScheduler or DDPM.*EulerDiscrete.*DDIMScheduler.from_config"
    with pytest.raises(UnsupportedSchedulerError, match=message):
        Guidance(quadratic, mode=method, space="latent").attach(pipe)
    assert "step" not in vars(scheduler)
    with Guidance(quadratic, mode=UniversalGuidance(), space="latent").attach(pipe):
        pass


@pytest.mark.parametrize(
    ("mode", "error", "message"),
    [
        ("dps", ValueError, r"mode must be one of x0, exact, noisy, blend, or a method such as FreeDoM\(\), got 'dps'"),
        (DPS, TypeError, r"mode must be an object, got the class DPS: write mode=DPS\(\)"),
        (0.2, TypeError, r"an object with shift, check, needs_tape and needs_correction, such as .*FreeDoM.*got float"),
    ],
)
def test_what_is_no_mode_is_refused(mode, error, message):
    with pytest.raises(error, match=message):
        Guidance(quadratic, mode=mode)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LGDMC(samples=0), "samples must be a whole number of noisy copies, at least 1, got 0"),
        (lambda: TFG(samples=1.5), "samples must be a whole number of noisy copies, at least 1, got 1.5"),
        (lambda: TFG(iterations=0), "iterations must be a whole number, at least 1, got 0"),
        (lambda: TFG(mu_schedule="linear"), "mu_schedule must be one of increase, decrease, constant, got 'linear'"),
        (lambda: UniversalGuidance(backward_steps=-1), "backward_steps must be a whole number, at least 0, got -1"),
        (lambda: DPS(math.inf), r"zeta must be a finite number from -1e\+09 to 1e\+09, got inf"),
        (lambda: LGDMC(radius=-1), r"radius must be a finite number from 0 to 1e\+09, got -1"),
        (lambda: TFG(seed=2**43), "seed must be a whole number of less than 43 bits, got 8796093022208"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_level_must_know_its_timestep():
    state = state_at(scheduler_of(), 0)
    prediction = replace(state.prediction, level=replace(state.level, timestep=None))
    with pytest.raises(ValueError, match="expected a noise level that knows its timestep"):
        step_of(replace(state, prediction=prediction))


def test_the_next_level_is_known_for_the_steps_of_ddim_alone():
    state = replace(state_at(scheduler_of(), 3), scheduler=EulerDiscreteScheduler())
    with pytest.raises(UnsupportedSchedulerError, match="the noise level after a step is defined.*EulerDiscrete"):
        assert state.next_level
