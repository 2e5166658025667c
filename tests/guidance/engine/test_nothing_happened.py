"""Where guidance steers nothing, it says so once, with the cure; start and stop are fractions of the run."""

import gc
import warnings

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from helpers.factories import assemble, generate, make_scheduler
from helpers.minimal_pipeline import brightness, loop, minimal_pipeline, schedulers

from clip_guidance.guidance import Guidance
from clip_guidance.guidance.adapters.schedulers import count_steps, fraction_done
from clip_guidance.guidance.methods import FreeDoM


@pytest.mark.slow
def test_attach_without_with_is_warned_of_where_it_stands():
    pipe, guidance = minimal_pipeline(), Guidance(brightness, space="latent")
    with pytest.warns(UserWarning, match="attach.. alone steers nothing, .* Write `with guidance.attach") as caught:
        guidance.attach(pipe)
        gc.collect()
    assert len(caught) == 1 and caught[0].filename == __file__
    with guidance.attach(pipe):
        loop(pipe)
    gc.collect()  # a block that was entered says nothing


WINDOWS = [
    ({"start": 0.9}, "start=0.9, stop=1.0 leave none of its steps. Widen them"),
    ({"start": 0.3, "stop": 0.4}, "start=0.3, stop=0.4 leave none"),
    ({"schedule": lambda fraction: 0.0}, "stop=1.0 and the schedule leave none"),
]


@pytest.mark.parametrize(("options", "message"), WINDOWS)
def test_runs_without_a_guided_step_are_warned_of_once(options, message):
    pipe = minimal_pipeline()
    plain = loop(pipe)
    guidance = Guidance(brightness, space="latent", **options)
    with pytest.warns(UserWarning, match=message) as caught, guidance.attach(pipe):
        assert loop(pipe).equal(plain)
        loop(pipe)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_a_run_by_another_pipeline_that_shares_the_scheduler_is_warned_of(tiny_pipeline):
    pipe = tiny_pipeline()
    other = type(pipe).from_pipe(pipe)
    message = "attached to a StableDiffusionPipeline that took no step, while another pipeline ran that shares"
    with pytest.warns(UserWarning, match=message), Guidance(brightness).attach(pipe):
        generate(other)


def test_an_exchanged_scheduler_is_one_warning():
    pipe = minimal_pipeline()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Guidance(brightness, space="latent", start=0.9).attach(pipe):
            pipe.scheduler = make_scheduler("euler")
            loop(pipe)
    (message,) = (str(each.message) for each in caught if each.category is UserWarning)
    assert "scheduler was exchanged" in message and "Exchange it before attaching" in message


@pytest.mark.parametrize(
    ("reward", "options", "steps"),
    [
        (lambda x: 0 * brightness(x), {}, 4),
        (lambda x: brightness(x).clamp(max=-1e3), {"cap": 1.0}, 4),  # it is saturated
        (brightness, {"mode": FreeDoM(rho_without=0.02)}, 1),  # DDPM's noise correction is 0 where the signal is 0
    ],
    ids=["constant", "saturated", "one step"],
)
def test_guided_runs_that_nothing_changed_are_warned_of_once(reward, options, steps):
    zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    pipe = minimal_pipeline(**zero_snr)
    plain = loop(pipe, steps)
    with (
        pytest.warns(UserWarning, match="guidance changed nothing in a run: the reward's gradient, or") as caught,
        Guidance(reward, space="latent", **options).attach(pipe) as guidance,
    ):
        assert loop(pipe, steps).equal(plain)
        loop(pipe, steps)
    assert len(caught) == 1 and caught[0].filename == __file__ and len(guidance.report.steps) == steps


# ---------------------------------------------------------------- fractions of the run


@schedulers
@pytest.mark.parametrize(("options", "expected"), [
    ({"start": 0.5}, range(15, 20)), ({"stop": 0.5}, range(10, 15)), ({"start": 0.2, "stop": 0.3}, [12]),
])  # fmt: skip
def test_of_image_to_image_the_fractions_are_of_the_steps_that_it_takes(networks, scheduler, options, expected):
    parts = assemble(**networks[torch.float32], scheduler=make_scheduler(scheduler)).components
    pipe = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    guidance = Guidance(brightness, **options)
    with guidance.attach(pipe):
        pipe("cat", torch.zeros(1, 3, 16, 16), strength=0.5, num_inference_steps=20, output_type="latent",
             generator=torch.Generator().manual_seed(0))  # fmt: skip
    assert guidance.report.steps == list(expected)


def test_the_fractions_of_a_run_that_ends_early_are_of_its_steps():
    scheduler = make_scheduler("ddim")
    scheduler.set_timesteps(20)
    timesteps = scheduler.timesteps[4:14]
    count = count_steps(scheduler, timesteps, 4)
    assert count == 10
    assert [fraction_done(scheduler, 4 + i, 4, count) for i in range(10)] == pytest.approx([i / 10 for i in range(10)])
    for unlike in (None, scheduler.timesteps, timesteps + 1, scheduler.timesteps[4:]):
        assert count_steps(scheduler, unlike, 4) is None
    assert [fraction_done(scheduler, i) for i in range(20)] == [i / 20 for i in range(20)]  # to the bit
