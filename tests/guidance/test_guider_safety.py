"""A guider that is cut off leaves nothing behind; what cannot work is refused, and what went wrong is reported."""

import functools
import gc
import weakref

import pytest
import torch
from diffusers import DDIMInverseScheduler
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3LoopAfterDenoiser
from helpers.minimal_pipeline import exact_first
from helpers.modular_runs import GUIDERS, SCALE, SD3, built, redness, run, untouched
from helpers.pipelines import modular

from clip_guidance.guidance import Guidance, UnsupportedSchedulerError


def failing(error, like=None):
    def fail(*args, **kwargs):
        raise error("stop")

    return fail if like is None else functools.wraps(like)(fail)


# ---------------------------------------------------------------- cut off


@pytest.mark.parametrize("place", ["denoiser", "reward", "hooks", "guider", "scheduler"])
@pytest.mark.parametrize("nested", [pytest.param(False, marks=pytest.mark.slow), True])
@exact_first
def test_a_run_that_is_cut_off_leaves_nothing(monkeypatch, mode, nested, place):
    pipe, inputs = built(SD3)
    inside = ClassifierFreeGuidance(3.0)
    guider = Guidance(redness, SCALE / 2, mode=mode, cap=2.0, guider=inside) if nested else inside
    guidance = Guidance(redness, SCALE, mode=mode, guider=guider)
    expected = run(pipe, inputs, guider=guidance)
    target, name = {
        "denoiser": (pipe.transformer.norm_out, "forward"),
        "reward": (guidance, "reward"),
        "hooks": (inside, "prepare_models"),
        "guider": (inside, "forward"),
        "scheduler": (type(pipe.scheduler), "step"),
    }[place]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="stop"):
        like = getattr(target, name) if place == "scheduler" else None
        patch.setattr(target, name, failing(KeyboardInterrupt, like))
        run(pipe, inputs)
    untouched(pipe)
    assert run(pipe, inputs).equal(expected)


@pytest.fixture
def cut_off(monkeypatch):
    """(pipe, inputs, guider) -> a run that ends between the guider and the scheduler."""

    def cut(pipe, inputs, guider):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stop"):
            patch.setattr(StableDiffusion3LoopAfterDenoiser, "__call__", failing(RuntimeError))
            run(pipe, inputs, guider=guider)
        assert torch.is_grad_enabled()

    return cut


@pytest.mark.parametrize("nested", [pytest.param(False, marks=pytest.mark.slow), True])
@exact_first
def test_cut_off_between_guider_and_scheduler_the_next_run_clears_up(cut_off, mode, nested):
    pipe, inputs = built(SD3)
    guidance = Guidance(redness, SCALE, mode=mode, guider=Guidance(redness, 1.0, mode=mode) if nested else None)
    expected = run(pipe, inputs, guider=guidance)
    plain = run(pipe, inputs, guider=ClassifierFreeGuidance(3.0))
    cut_off(pipe, inputs, guidance)
    assert run(pipe, inputs).equal(expected)
    untouched(pipe)
    cut_off(pipe, inputs, guidance)
    assert run(pipe, inputs, guider=ClassifierFreeGuidance(3.0)).equal(plain)
    untouched(pipe)


@exact_first
def test_after_a_run_that_was_cut_off_everything_may_be_exchanged(cut_off, mode):
    pipe, inputs = modular.stable_diffusion3()
    guidance, other = (Guidance(redness, SCALE, mode=each) for each in (mode, "x0"))
    expected = run(pipe, inputs, guider=other)
    cut_off(pipe, inputs, guidance)
    guidance.mode = "x0"
    pipe.update_components(scheduler=pipe.scheduler.from_config(pipe.scheduler.config))
    assert run(pipe, inputs).equal(expected)
    untouched(pipe)


@pytest.mark.slow
@exact_first
def test_after_a_run_the_pipeline_is_freed_with_its_last_reference(mode):
    pipe, inputs = modular.stable_diffusion3()
    run(pipe, inputs, guider=Guidance(redness, SCALE, mode=mode, guider=ClassifierFreeGuidance(3.0)))
    freed = weakref.ref(pipe.transformer)
    gc.collect()
    gc.disable()
    try:
        del pipe
        assert freed() is None
    finally:
        gc.enable()


def test_the_average_of_adaptive_projected_guidance_keeps_no_graph():
    guider = GUIDERS["apg"]()
    with pytest.warns(UserWarning, match="steered no step of a run: start=0.9"):
        run(*built(SD3), guider=Guidance(redness, SCALE, mode="exact", start=0.9, guider=guider))
    assert not guider.momentum_buffer.running_average.requires_grad


@exact_first
def test_shifts_that_are_not_finite_are_reported_once_a_run(mode):
    pipe, inputs = built(SD3)
    with pytest.warns(UserWarning, match="left out 3 shifts that were not finite") as warned:
        run(pipe, inputs, guider=Guidance(lambda x: redness(x) * float("nan"), mode=mode))
    assert len(warned) == 1
    untouched(pipe)


# ---------------------------------------------------------------- refused


def test_attach_refuses_a_guidance_that_goes_around_a_guider():
    pipe, _ = built(SD3)
    with pytest.raises(ValueError, match="does not use guider=ClassifierFreeGuidance. .* the guider of a modular"):
        Guidance(redness, guider=ClassifierFreeGuidance()).attach(pipe)


def test_what_is_no_guider_is_refused():
    with pytest.raises(TypeError, match="guider must be a guider of diffusers, .* or None, got float"):
        Guidance(redness, guider=7.5)


def test_outside_a_pipeline_it_says_where_it_belongs():
    with pytest.raises(RuntimeError, match="a running modular pipeline, .* In a loop of your own use `attach`"):
        Guidance(redness).set_state(0, 4, torch.tensor(999))


def test_a_scheduler_that_cannot_be_guided_is_refused_before_the_first_forward():
    pipe, inputs = modular.stable_diffusion_xl()
    pipe.update_components(scheduler=DDIMInverseScheduler())
    pipe.unet.register_forward_hook(failing(AssertionError))
    with pytest.raises(UnsupportedSchedulerError, match="DDIMInverseScheduler cannot be guided"):
        run(pipe, inputs, guider=Guidance(redness))


def test_a_pipeline_that_cannot_be_guided_is_refused_by_name():
    pipe, inputs = modular.stable_diffusion3()
    pipe.__class__ = type("LTX2ModularPipeline", (type(pipe),), {})
    with pytest.raises(ValueError, match="LTX2ModularPipeline cannot be guided: copies of one scheduler"):
        run(pipe, inputs, guider=Guidance(redness))
