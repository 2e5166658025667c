"""Steps taken several times with the noise put back in between."""

import inspect
import math
from collections import Counter

import pytest
import torch
from diffusers import DDIMPipeline, EulerDiscreteScheduler, UNet2DModel
from helpers.reference_samplers import (
    STEPS,
    assert_close,
    gradient,
    guided,
    make_pipe,
    quadratic,
    reference_samples,
    run,
)

from clip_guidance.guidance import Guidance, UnsupportedSchedulerError
from clip_guidance.guidance.methods import DPS, TFG, UniversalGuidance, recurrent, tfg
from clip_guidance.guidance.methods.tfg import share

settings = pytest.mark.parametrize(("eta", "ddpm"), [(0.0, False), (1.0, False), (1.0, True)])


def dps(s):
    return s.ddim() + 0.3 * s.jacobian * gradient(s.x0)


@settings
def test_one_time_is_none(eta, ddpm):
    pipe = make_pipe(eta, ddpm=ddpm)
    expected = run(pipe)
    with recurrent(pipe.scheduler, 1):
        assert run(pipe).equal(expected)


@settings
def test_unguided_run_is_written_out(eta, ddpm):
    pipe = make_pipe(eta, ddpm=ddpm)
    with recurrent(pipe.scheduler, 3, (0.25, 0.75), seed=7):
        found = run(pipe)
    assert_close(found, reference_samples(lambda s: s.ddim(), eta, times=3, window=(0.25, 0.75), seed=7))
    assert (found - run(pipe)).abs().max() > 0.1


@settings
def test_guided_run_is_written_out(eta, ddpm):
    pipe = make_pipe(eta, ddpm=ddpm)
    with recurrent(pipe.scheduler, 2):
        found = guided(pipe, DPS(0.3))
    assert_close(found, reference_samples(dps, eta, times=2))


def test_tfg_schedules_count_a_repeated_step_once(monkeypatch):
    pipe, seen = make_pipe(), []
    monkeypatch.setattr(tfg, "share", lambda *given: seen.append(share(*given)) or seen[-1])
    with recurrent(pipe.scheduler, 3):
        guided(pipe, TFG(0.2, 0.05, sigma=0.0))
    assert len(seen) == 2 * 3 * STEPS
    assert sum(seen) / len(seen) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.25, 0.75)])
def test_start_and_stop_count_a_repeated_step_once(window):
    pipe, guidance = make_pipe(), Guidance(quadratic, mode=DPS(0.3), space="latent", start=0.25, stop=0.75)
    with recurrent(pipe.scheduler, 3, window), guidance.attach(pipe):
        run(pipe)
    before = 2 * (3 if window[0] == 0 else 1)  # two of the eight steps
    assert guidance.report.steps == list(range(before, before + 3 * 4))


def test_the_order_of_attaching_does_not_matter():
    pipe = make_pipe()
    guidance = Guidance(quadratic, mode=UniversalGuidance(0.4), space="latent")
    with recurrent(pipe.scheduler, 2), guidance.attach(pipe):
        first, report = run(pipe), guidance.report
    with guidance.attach(pipe), recurrent(pipe.scheduler, 2):
        assert run(pipe).equal(first)
    assert report.steps == guidance.report.steps == list(range(2 * STEPS))


@settings
def test_everything_is_put_back(eta, ddpm):
    pipe = make_pipe(eta, ddpm=ddpm)
    run(pipe)
    scheduler = pipe.scheduler
    before, timesteps = dict(vars(scheduler)), scheduler.timesteps.tolist()
    signatures = inspect.signature(scheduler.step), inspect.signature(scheduler.set_timesteps)
    with pytest.raises(KeyError), recurrent(scheduler, 2):
        assert (inspect.signature(scheduler.step), inspect.signature(scheduler.set_timesteps)) == signatures
        run(pipe)
        assert scheduler.timesteps.tolist() == [t for t in timesteps for _ in range(2)]
        raise KeyError
    assert vars(scheduler).keys() == before.keys()
    assert scheduler.timesteps.tolist() == timesteps


def test_another_wrapper_of_step_is_put_back():
    scheduler = make_pipe().scheduler
    scheduler.step = own = scheduler.step
    with recurrent(scheduler, 2):
        assert scheduler.step is not own
    assert scheduler.step is own


def test_recurrence_lets_guidance_correct_what_it_did():
    """Time travel is there to come closer to the condition: universal guidance's table of k."""
    pipe, rewards = make_pipe(), []
    for times in (1, 4):
        with recurrent(pipe.scheduler, times):
            rewards.append(quadratic(guided(pipe, TFG(0.0, 0.02, sigma=0.0, iterations=1))).mean().item())
    assert rewards[1] > rewards[0] + 0.1


def test_a_stock_pipeline_calls_its_denoiser_again():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    pipe = DDIMPipeline(unet, make_pipe().scheduler)
    pipe.set_progress_bar_config(disable=True)
    seen = []
    unet.register_forward_pre_hook(lambda module, args: seen.append(int(args[1])))

    def images():
        seen.clear()
        options = {"num_inference_steps": 10, "eta": 0.0, "output_type": "np"}
        return torch.from_numpy(pipe(generator=torch.Generator().manual_seed(0), **options).images)

    expected, timesteps = images(), list(seen)
    with recurrent(pipe.scheduler, 3, (0.3, 0.6)):
        first, counts = images(), Counter(seen)
        assert first.equal(images()), "every run starts from the seed"
    assert [counts[t] for t in timesteps] == [1, 1, 1, 3, 3, 3, 1, 1, 1, 1]
    assert not first.equal(expected)
    assert images().equal(expected)


def test_noise_is_its_own_and_has_the_variance_that_was_taken_out():
    """A step to x_{t−1} = 0 is noised to N(0, 1 − α_t)."""
    pipe = make_pipe(0.0)
    state = torch.random.get_rng_state()
    with recurrent(pipe.scheduler, 2):
        pipe.scheduler.set_timesteps(STEPS)
        t, zeros = pipe.scheduler.timesteps[0], torch.zeros(1, 1, 100, 100)
        noised = pipe.scheduler.step(zeros, t, zeros).prev_sample
        assert pipe.scheduler.step(zeros, t, zeros, return_dict=False)[0].equal(zeros), "the last one of this timestep"
        next_t = pipe.scheduler.timesteps[2]
        assert pipe.scheduler.step(zeros, next_t, zeros, return_dict=False)[0].any()
    bars = pipe.scheduler.alphas_cumprod
    assert noised.std().item() == pytest.approx(math.sqrt(1 - bars[t] / bars[next_t]), rel=0.03)
    assert torch.random.get_rng_state().equal(state)


@pytest.mark.parametrize(
    ("times", "window", "message"),
    [
        (0, (0, 1), "times must be a whole number, at least 1, got 0"),
        (1.5, (0, 1), "times must be a whole number, at least 1, got 1.5"),
        (2, (0.5, 0.5), "expected a window 0 <= start < stop <= 1, got .0.5, 0.5."),
        (2, (0.1, math.nan), "a fraction of window must be a finite number.*, got nan"),
    ],
)
def test_arguments_out_of_range(times, window, message):
    with pytest.raises(ValueError, match=message), recurrent(make_pipe().scheduler, times, window):
        pass


def test_a_window_without_a_step_is_told():
    scheduler = make_pipe().scheduler
    with recurrent(scheduler, 3, (0.51, 0.52)):
        with pytest.warns(UserWarning, match="repeats no step: none of the 8 lies in the window 0.51 to 0.52"):
            scheduler.set_timesteps(STEPS)
        assert len(scheduler.timesteps) == STEPS


def test_other_schedulers_are_refused():
    scheduler = EulerDiscreteScheduler()
    with pytest.raises(UnsupportedSchedulerError, match="recurrence is defined.*EulerDiscreteScheduler"):
        recurrent(scheduler, 2).__enter__()
    assert "step" not in vars(scheduler)


def test_a_run_must_begin_at_the_first_timestep():
    scheduler, x = make_pipe().scheduler, torch.zeros(1)
    with recurrent(scheduler, 2):
        with pytest.raises(RuntimeError, match="expected set_timesteps.. to be called inside"):
            scheduler.step(x, 875, x)
        scheduler.set_timesteps(STEPS)
        with pytest.raises(RuntimeError, match="expected step 0 of 16 at timestep 875, got 500"):
            scheduler.step(x, 500, x)
