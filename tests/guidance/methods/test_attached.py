"""Each method as a user writes it, on a stock pipeline: nothing but its parameters is given."""

import json
import math
from contextlib import ExitStack

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.guiders import ClassifierFreeGuidance
from helpers.factories import Recorder, generate, save_tiny_clip
from helpers.modular_runs import SDXL, built, redness, run

from clip_guidance.clip import CLIP
from clip_guidance.guidance import CLIPGuidance, CLIPReward, Guidance
from clip_guidance.guidance.config import mode_from_config, mode_to_config
from clip_guidance.guidance.methods import DPS, LGDMC, METHODS, MPGD, TFG, FreeDoM, Tilt, UniversalGuidance, recurrent

SETTINGS = [
    DPS(1.0),
    LGDMC(1.0, samples=3, radius=0.1),
    FreeDoM(0.5),
    MPGD(1.0),
    MPGD(rho=15.0),
    UniversalGuidance(2.0, 2, 0.2),
    TFG(1.0, 1.0, sigma=0.1, samples=2, iterations=2),
    Tilt(3),
]
methods = pytest.mark.parametrize("method", SETTINGS, ids=repr)
#: The packaged pipeline's scheduler: without any signal at the first step.
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
configs = pytest.mark.parametrize(
    "config", [pytest.param({}, id="epsilon", marks=pytest.mark.slow), pytest.param(ZERO_SNR, id="zero-snr")]
)


def test_every_method_is_tried_here():
    assert {type(method) for method in SETTINGS} == set(METHODS)


def images(pipe, **options):
    return generate(pipe, ["cat", "owl"], seeds=(0, 1), output_type="pt", **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("eta", "times"), [(1.0, 1), *(pytest.param(*each, marks=pytest.mark.slow) for each in [(0.0, 1), (1.0, 2)])]
)
@configs
@methods
def test_the_reward_rises(tiny_pipeline, clip, method, config, eta, times):
    pipe, reward = tiny_pipeline(**config), CLIPReward(clip, "dog")
    guidance = CLIPGuidance(clip, "dog", mode=method)
    with recurrent(pipe.scheduler, times):
        unguided = images(pipe, eta=eta)
        with guidance.attach(pipe):
            guided = images(pipe, eta=eta)
    with torch.no_grad():
        assert (reward(guided) > reward(unguided) + 0.1).all()
    report = guidance.report
    assert report.steps == list(range(4 * times)) and len(report.rewards) == 4 * times and not report.dropped


@pytest.mark.slow
@methods
def test_scale_zero_is_bit_identical(tiny_pipeline, clip, method):
    pipe = tiny_pipeline()
    expected = images(pipe, eta=1.0)
    with CLIPGuidance(clip, "dog", 0.0, mode=method).attach(pipe):
        assert images(pipe, eta=1.0).equal(expected)
    with CLIPGuidance(clip, "dog", mode=method).attach(pipe):
        assert not images(pipe, eta=1.0).equal(expected)
    assert images(pipe, eta=1.0).equal(expected)
    assert not pipe.unet._forward_hooks and not pipe.unet._forward_pre_hooks and "step" not in vars(pipe.scheduler)


def rms(x):
    return x.square().mean().sqrt()


@pytest.mark.parametrize("eta", [0.0, 1.0])
@configs
def test_freedoms_step_is_its_share_of_the_classifier_free_correction(tiny_pipeline, clip, config, eta):
    """‖x_{t−1} − x'_{t−1}‖ = ρ·‖ε̂_cfg − ε̂_uncond‖, of which the user told it nothing but ρ."""
    pipe, rho, cfg = tiny_pipeline(dtype=torch.float64, **config), 0.2, 3.0
    recorder = Recorder(pipe.scheduler)
    with CLIPGuidance(clip.double(), "dog", mode=FreeDoM(rho)).attach(pipe):
        generate(pipe, eta=eta, guidance_scale=cfg)
    del pipe.scheduler.step
    embeds = pipe.encode_prompt("cat", pipe.device, 1, True)[::-1]  # unconditional first
    for guided, t, x in recorder.calls:
        with torch.no_grad():
            uncond, cond = (pipe.unet(x, t, each).sample for each in embeds)
        plain = uncond + cfg * (cond - uncond)
        following, unguided = (
            pipe.scheduler.step(each, t, x, eta=eta, generator=torch.Generator().manual_seed(0)).prev_sample
            for each in (guided, plain)
        )
        # ε̂ = αv + σx
        weight = math.sqrt(pipe.scheduler.alphas_cumprod[t]) if config else 1.0
        assert rms(following - unguided).item() == pytest.approx(rho * weight * rms(plain - uncond).item(), rel=1e-4)


def test_a_method_beside_another_guidance_adds_up(tiny_pipeline, clip):
    """What one of them watches is not in the way of the other."""
    pipe = tiny_pipeline()

    def first_output(*guidances):
        recorder = Recorder(pipe.scheduler)
        with ExitStack() as stack:
            for guidance in guidances:
                stack.enter_context(guidance.attach(pipe))
            generate(pipe, steps=2)
        del pipe.scheduler.step
        return recorder.calls[0][0]

    freedom, named = CLIPGuidance(clip, "dog", mode=FreeDoM()), CLIPGuidance(clip, "owl", mode="x0", cap=1.0)
    plain = first_output()
    both, one, other = (first_output(*each) - plain for each in ((freedom, named), (freedom,), (named,)))
    assert one.abs().max() > 1e-3 and other.abs().max() > 1e-3
    torch.testing.assert_close(both, one + other)


# ---------------------------------------------------------------- as a guider, and saved


@pytest.mark.slow
@pytest.mark.parametrize("method", [FreeDoM(2.0), MPGD(rho=200.0), TFG(samples=2), UniversalGuidance()], ids=repr)
def test_the_guider_of_a_modular_pipeline_makes_the_images_that_it_makes_attached(method):
    pipe, inputs = built(SDXL)
    own = pipe.scheduler
    pipe.update_components(scheduler=DDIMScheduler.from_config(own.config))
    try:
        unguided = run(pipe, inputs, guider=ClassifierFreeGuidance(3.0))
        with Guidance(redness, mode=method).attach(pipe):
            expected = run(pipe, inputs, guider=ClassifierFreeGuidance(3.0))
        found = run(pipe, inputs, guider=Guidance(redness, mode=method, guider=ClassifierFreeGuidance(3.0)))
    finally:
        pipe.update_components(scheduler=own)
    torch.testing.assert_close(found, expected)
    assert (found - unguided).abs().max() > 1e-3
    assert (redness(found) > redness(unguided)).all()


@methods
def test_a_config_holds_a_method_by_its_name_and_parameters(method):
    config = json.loads(json.dumps(mode_to_config(method)))
    assert config["_class_name"] == type(method).__name__
    assert mode_from_config(config) == method


def test_a_guidance_is_saved_with_its_method(tmp_path):
    clip = CLIP.from_pretrained(save_tiny_clip(tmp_path / "clip"))
    guidance = CLIPGuidance(clip, "a red apple", mode=TFG(0.5, 2.0, mu_schedule="constant"))
    guidance.save_pretrained(tmp_path / "guidance")
    loaded = CLIPGuidance.from_pretrained(tmp_path / "guidance")
    assert loaded.mode == guidance.mode and loaded.config == guidance.config


def test_a_mode_that_would_not_be_found_again_is_not_saved():
    class Own(FreeDoM):
        pass

    with pytest.raises(TypeError, match="Own, the mode, cannot be saved: expected the name of a mode or one of "):
        mode_to_config(Own())
    with pytest.raises(ValueError, match="the mode was Own; expected one of DPS, LGDMC, FreeDoM"):
        mode_from_config({"_class_name": "Own", "rho": 0.2})
