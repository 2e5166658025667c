"""Guidance as the guider of modular pipelines makes the images that it makes attached, around any guider."""

import functools

import diffusers as d
import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from helpers.factories import Recorder
from helpers.minimal_pipeline import exact_first
from helpers.modular_runs import (
    GUIDERS,
    KEYS,
    QWEN,
    SCALE,
    SD3,
    SDXL,
    WAN,
    Z_IMAGE,
    built,
    mean_redness,
    modes,
    perturbed,
    redness,
    run,
    stock,
    untouched,
)
from helpers.pipelines import modular, parts, video

from clip_guidance.guidance import Guidance

CASES = [(key, "cfg") for key in KEYS]
CASES += [(key, guider) for key in (SDXL, SD3, QWEN, WAN) for guider in ("alone", "apg")]
CASES += [(SDXL, "pag of sdxl"), (QWEN, "pag"), (Z_IMAGE, "pag"), (WAN, "slg")]
#: Every guider once; all cases run with --full.
DEFAULT = [(SDXL, "cfg"), (QWEN, "pag")]
CASES = [pytest.param(*case, marks=[pytest.mark.slow] * (case not in DEFAULT)) for case in CASES]


def sines(latents):
    """A reward that is not linear, on latents."""
    return latents.mul(2.0).sin().flatten(1).sum(1)


@modes
@pytest.mark.parametrize(("key", "guider"), CASES)
def test_images_are_those_of_the_same_guidance_attached(key, guider, mode):
    pipe, inputs = built(key)
    if mode == "exact" and key in modular.NO_EXACT:
        with pytest.raises(ValueError, match="mode='exact' expected the denoiser to read copies of the sample"):
            run(pipe, inputs, guider=Guidance(redness, SCALE, mode, guider=GUIDERS[guider]()))
        return
    unguided = run(pipe, inputs, guider=stock(guider))
    options = {"mode": mode, "every": 2 if guider == "apg" else 1, "cap": 2.0 if guider == "cfg" else None}
    attached = Guidance(redness, SCALE, **options)
    with attached.attach(pipe):
        expected = run(pipe, inputs, guider=stock(guider))
    guidance = Guidance(redness, SCALE, guider=GUIDERS[guider](), **options)
    images = run(pipe, inputs, guider=guidance)
    torch.testing.assert_close(images, expected)
    assert (images - unguided).abs().max() > 1e-3
    assert mean_redness(images) > mean_redness(unguided)
    assert guidance.report.steps == attached.report.steps
    assert guidance.report.capped == attached.report.capped
    untouched(pipe)


@pytest.mark.slow
@pytest.mark.parametrize("guider", ["alone", "cfg"])
@pytest.mark.parametrize("key", KEYS)
def test_scale_zero_is_bit_identical_to_the_guider_inside(key, guider):
    pipe, inputs = built(key)
    expected = run(pipe, inputs, guider=stock(guider))
    guidance = Guidance(redness, 0.0, mode="exact", cap=1.0, guider=GUIDERS[guider]())
    assert run(pipe, inputs, guider=guidance).equal(expected)


@pytest.mark.slow
@exact_first
def test_both_models_of_wan_are_steered_each_by_its_guider(mode):
    first_model, inputs = video.wan(d.WanPipeline)
    second_model = parts.awaken(d.WanTransformer3DModel(in_channels=4, **video.TRANSFORMER))
    pipe = modular.modular(d.Wan22ModularPipeline, first_model, transformer_2=second_model)
    inputs["num_inference_steps"] = 4
    with Guidance(redness, SCALE, mode=mode).attach(pipe):
        expected = run(pipe, inputs, guider=ClassifierFreeGuidance(3.0), guider_2=ClassifierFreeGuidance(2.0))
    first, second = (Guidance(redness, SCALE, mode=mode, guider=ClassifierFreeGuidance(s)) for s in (3.0, 2.0))
    torch.testing.assert_close(run(pipe, inputs, guider=first, guider_2=second), expected)
    assert first.report.steps == [0, 1] and second.report.steps == [2, 3]
    with Guidance(redness, SCALE, mode=mode).attach(pipe):
        expected = run(pipe, inputs, guider=ClassifierFreeGuidance(3.0), guider_2=ClassifierFreeGuidance(3.0))
    torch.testing.assert_close(run(pipe, inputs, guider=first, guider_2=first), expected)
    assert first.report.steps == [0, 1, 2, 3]


@pytest.mark.parametrize("key", [WAN, Z_IMAGE])
def test_exact_sees_through_a_cast_after_the_guider(key):
    def shift(dtype):
        """Of the second model output; both runs come to it with the same sample."""
        pipe, inputs = modular.PIPELINES[key]()
        pipe.to(dtype)
        outputs = []
        for scale in (1.0, 0.0):
            recorder = Recorder(pipe.scheduler)
            options = {"mode": "exact", "space": "latent", "start": 0.3}
            guidance = Guidance(sines, scale, guider=ClassifierFreeGuidance(3.0), **options)
            run(pipe, {name: cast(value, dtype) for name, value in inputs.items()}, guider=guidance)
            del pipe.scheduler.step
            outputs.append(recorder.calls[1][0].flatten())
        return outputs[0] - outputs[1]

    expected, found = shift(torch.float32), shift(torch.bfloat16)
    assert torch.cosine_similarity(found, expected, 0) > 0.95
    torch.testing.assert_close(found.norm(), expected.norm(), rtol=0.05, atol=0)


def cast(value, dtype):
    if isinstance(value, list):
        return [cast(each, dtype) for each in value]
    return value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value


class SecondStep:
    """Wraps ``scheduler.step``: takes the second step from a sample that is given, and keeps its model output."""

    def __init__(self, scheduler, sample=None):
        self.sample, self.model_output, self.calls = sample, None, 0
        self.original = scheduler.step
        scheduler.step = functools.wraps(self.original)(lambda *args, **kwargs: self(*args, **kwargs))

    def __call__(self, model_output, timestep, sample, return_dict):
        self.calls += 1
        (after,) = self.original(model_output, timestep, sample, return_dict=return_dict)
        if self.calls == 2:
            self.model_output = model_output
        elif self.sample is None:
            self.sample = after
        return (after if self.calls == 2 else self.sample,)


def test_exact_is_the_gradient_through_all_forwards_and_what_the_block_makes_of_them():
    pipe, inputs = modular.qwen_image()  # its block rescales the prediction
    inputs["num_inference_steps"] = 2

    def second_step(guider, sample=None):
        step = SecondStep(pipe.scheduler, sample)
        run(pipe, inputs, guider=guider)
        del pipe.scheduler.step
        return step

    def reward_at(sample):
        return sines(sample - sigma * second_step(perturbed(), sample).model_output)

    guidance = Guidance(sines, 1.0, mode="exact", space="latent", start=0.5, guider=perturbed())
    guided, plain = second_step(guidance), second_step(perturbed())
    sigma, x = float(pipe.scheduler.sigmas[1]), plain.sample
    unperturbed = second_step(ClassifierFreeGuidance(3.0), x)
    assert (plain.model_output - unperturbed.model_output).abs().max() > 1e-2
    shift = -sigma * (guided.model_output - plain.model_output)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    slope = (reward_at(x + 0.01 * direction) - reward_at(x - 0.01 * direction)) / 0.02
    expected = sigma**2 / (1 - sigma) * slope
    torch.testing.assert_close((shift * direction).flatten(1).sum(1), expected, rtol=0.01, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("other", ["x0", "exact"])
@modes
@pytest.mark.parametrize("key", [SD3, pytest.param(QWEN, marks=pytest.mark.slow)])
def test_guidances_add_up_whether_guider_or_attached_or_inside(key, mode, other):
    pipe, inputs = built(key)
    guider = functools.partial(ClassifierFreeGuidance, 3.0)
    first, second = (functools.partial(Guidance, redness, SCALE / 2, mode=each) for each in (mode, other))
    with first().attach(pipe), second().attach(pipe):
        expected = run(pipe, inputs, guider=guider())
    with second().attach(pipe):
        torch.testing.assert_close(run(pipe, inputs, guider=first(guider=guider())), expected)
    untouched(pipe)
    torch.testing.assert_close(run(pipe, inputs, guider=first(guider=second(guider=guider()))), expected)
    untouched(pipe)


@modes
def test_one_guidance_guides_two_pipelines_in_turn_and_one_again(mode):
    guidance = Guidance(redness, SCALE, mode=mode, every=2)
    found = []
    for key in (SD3, QWEN, SD3, SD3):
        found.append(run(*built(key), guider=guidance))
        assert guidance.report.steps == [0, 2]
    assert found[0].equal(found[2]) and found[0].equal(found[3])


def test_alone_the_denoiser_runs_once_a_step():
    pipe, inputs = built(SD3)
    calls = []
    handle = pipe.transformer.register_forward_hook(lambda *args: calls.append(1))
    run(pipe, inputs, guider=Guidance(redness, SCALE))
    handle.remove()
    assert len(calls) == inputs["num_inference_steps"]


def test_the_guider_inside_is_turned_on_and_off_and_asked():
    inside = ClassifierFreeGuidance(3.0)
    guidance = Guidance(redness, guider=inside)
    assert guidance.num_conditions == 2 and guidance._enabled and guidance.get_state() == inside.get_state()
    guidance.disable()
    assert guidance.num_conditions == 1 and not inside._enabled and not guidance._enabled
    guidance.enable()
    assert inside._enabled
