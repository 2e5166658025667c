"""The options of Guidance beyond the window: scales, schedules and the cap."""

import math

import pytest
import torch
from helpers.factories import Recorder, generate
from helpers.minimal_pipeline import Recording, brightness, loop, minimal_pipeline, modes, schedulers
from torch import nn

from clip_guidance.guidance import CLIPGuidance, Guidance
from clip_guidance.guidance.adapters.noise_level import NoiseLevel
from clip_guidance.guidance.adapters.prediction import PREDICTION_TYPES, Prediction
from clip_guidance.guidance.engine.cap import Corrections
from clip_guidance.guidance.per_sample import capped

# ---------------------------------------------------------------- a scale for each image


@schedulers
@modes
def test_each_image_has_its_own_scale(tiny_pipeline, clip, scheduler, mode):
    pipe = tiny_pipeline(scheduler)
    plain = generate(pipe, ["cat"] * 2, seeds=(0, 1))
    with CLIPGuidance(clip, "dog", scale=[0.0, 2.0], mode=mode).attach(pipe):
        batch = generate(pipe, ["cat"] * 2, seeds=(0, 1))
    with CLIPGuidance(clip, "dog", scale=2.0, mode=mode).attach(pipe):
        alone = generate(pipe, seeds=(1,))
    torch.testing.assert_close(batch[:1], plain[:1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(batch[1:], alone, rtol=1e-4, atol=1e-4)


def test_scales_follow_num_images_per_prompt(tiny_pipeline):
    pipe = tiny_pipeline()
    images = []
    for scale in ([1.0, 3.0], [1.0, 1.0, 3.0, 3.0]):
        with Guidance(brightness, scale=scale).attach(pipe):
            images.append(generate(pipe, ["cat", "sun"], seeds=(0, 1, 2, 3), num_images_per_prompt=2))
    assert images[0].equal(images[1])


def test_scales_that_do_not_fit_the_batch_are_refused():
    message = "2 scales cannot be shared out evenly among a batch of 3 images"
    pipe = minimal_pipeline()
    with pytest.raises(ValueError, match=message), Guidance(brightness, [1.0, 2.0], space="latent").attach(pipe):
        loop(pipe, shape=(3, 2))


def test_scales_of_zero_attach_nothing():
    pipe = minimal_pipeline()
    with Guidance(brightness, scale=[0.0, 0.0], space="latent").attach(pipe):
        assert "step" not in vars(pipe.scheduler)


@pytest.mark.parametrize("scale", [[], [1.0, math.nan]])
def test_scales_are_finite_numbers(scale):
    with pytest.raises(ValueError, match="scale must be finite, got"):
        Guidance(brightness, scale=scale)


# ---------------------------------------------------------------- a schedule


def shifts(pipe, guidance, steps=4, **options):
    """What guidance adds to the model output, step by step of the same samples."""
    recorder = Recorder(pipe.scheduler)
    if guidance is None:
        loop(pipe, steps, **options)
    else:
        with guidance.attach(pipe):
            loop(pipe, steps, **options)
    del pipe.scheduler.step
    return [output - pipe.unet(pipe.scheduler.scale_model_input(x, t), t) for output, t, x in recorder.calls]


@modes
def test_a_schedule_multiplies_the_scale(mode):
    seen = []

    def half_way(fraction):
        seen.append(fraction)
        return 0.5 if fraction < 0.5 else 2.0

    def first_step(**options):
        return shifts(minimal_pipeline(), Guidance(brightness, space="latent", mode=mode, **options))[0]

    torch.testing.assert_close(first_step(schedule=half_way), first_step(scale=0.5))
    assert set(seen) == {0.0, 0.25, 0.5, 0.75}
    twice = shifts(minimal_pipeline(), Guidance(brightness, space="latent", mode=mode, schedule=lambda fraction: 2.0))
    doubled = shifts(minimal_pipeline(), Guidance(brightness, 2.0, mode, space="latent"))
    for one, other in zip(twice, doubled, strict=True):
        torch.testing.assert_close(one, other)


def test_no_work_is_done_where_the_schedule_is_zero():
    pipe, reward = minimal_pipeline(), Recording()
    guidance = Guidance(reward, space="latent", schedule=lambda fraction: float(fraction >= 0.5))
    with guidance.attach(pipe):
        loop(pipe, steps=10)
    assert guidance.report.steps == [5, 6, 7, 8, 9]
    assert len(reward.inputs) == 5


def test_a_schedule_is_callable():
    with pytest.raises(TypeError, match="schedule must be callable, got float"):
        Guidance(brightness, schedule=0.5)


# ---------------------------------------------------------------- a cap


def rms(x):
    return x.flatten(1).square().mean(1).sqrt()


def test_a_capped_shift_keeps_its_direction_and_a_short_one_its_length():
    shift = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    limit = torch.tensor([0.1, 0.5, 2.0, 9.0, 0.0])
    found = capped(shift, limit)
    assert found.count == int((rms(shift) > limit).sum())
    torch.testing.assert_close(rms(found.shift), torch.minimum(rms(shift), limit))
    torch.testing.assert_close(rms(found.shift)[:, None, None] * shift, rms(shift)[:, None, None] * found.shift)


class Outputs(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize("cfg", [1.5, 7.5])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction", "sample"])
@pytest.mark.parametrize("layout", ["uncond first", "cond first", "two calls", "negated", "list"])
def test_the_correction_of_classifier_free_guidance_is_found(layout, kind, cfg):
    generator = torch.Generator().manual_seed(0)
    cond, uncond, x = torch.randn(3, 2, 4, 5, generator=generator)
    guided, level, kind = uncond + cfg * (cond - uncond), NoiseLevel(0.6, 0.8), PREDICTION_TYPES[kind]
    denoiser, seen = Outputs(), Corrections(lambda: True)
    with seen.watch([denoiser]):
        if layout == "two calls":
            denoiser(cond), denoiser(uncond)
        elif layout == "list":
            denoiser(list(torch.cat([cond, uncond])))
        else:
            denoiser(torch.cat([cond, uncond] if layout == "cond first" else [uncond, cond]))
        sign = -1 if layout == "negated" else 1
        found = seen.rms(Prediction(sign * guided, x, level, kind))
    expected = rms(kind.to_x0(guided, x, level) - kind.to_x0(uncond, x, level))
    torch.testing.assert_close(found, expected)
    assert not seen.outputs and not denoiser._forward_hooks


def test_without_classifier_free_guidance_there_is_no_correction():
    denoiser, seen = Outputs(), Corrections(lambda: True)
    x = torch.ones(2, 3)
    with seen.watch([denoiser]):
        denoiser(x)
        assert seen.rms(Prediction(x, x, NoiseLevel(0.6, 0.8), PREDICTION_TYPES["epsilon"])) is None


@pytest.mark.parametrize("cfg", [pytest.param(1.0, marks=pytest.mark.slow), 3.0])
@schedulers
@modes
def test_no_shift_is_longer_than_the_cap(tiny_pipeline, clip, scheduler, mode, cfg):
    pipe, cap = tiny_pipeline(scheduler), 0.5
    guidance = CLIPGuidance(clip, "dog", scale=1e4, mode=mode, cap=cap)
    recorder = Recorder(pipe.scheduler)
    with guidance.attach(pipe):
        generate(pipe, guidance_scale=cfg)
    assert guidance.report.capped == 4
    embeds = pipe.encode_prompt("cat", pipe.device, 1, True)[::-1]  # unconditional first
    with torch.no_grad():
        for index, (guided, t, x) in enumerate(recorder.calls):
            ratio = noise_to_signal(pipe.scheduler, index, t)
            scaled = x / math.hypot(1, ratio) if scheduler == "euler" else x
            uncond, cond = (pipe.unet(scaled, t, each).sample for each in embeds)
            plain = uncond + cfg * (cond - uncond)
            # Of x̂₀ = (x − σm)/α, a change of m by d is one of (σ/α)·d; without classifier-free guidance the limit is
            # √w = σ/√(α² + σ²).
            limit = rms(plain - uncond).item() if cfg > 1 else 1 / math.hypot(1, ratio)
            assert rms(guided - plain).item() == pytest.approx(cap * limit, rel=1e-3)


def noise_to_signal(scheduler, index, t):
    """σ/α."""
    if hasattr(scheduler, "sigmas"):
        return scheduler.sigmas[index].item()
    alpha_prod = scheduler.alphas_cumprod[t].item()
    return math.sqrt((1 - alpha_prod) / alpha_prod)


@modes
def test_a_cap_that_is_never_reached_changes_nothing(tiny_pipeline, clip, mode):
    pipe = tiny_pipeline()
    images = []
    for cap in (None, 1e6):
        guidance = CLIPGuidance(clip, "dog", mode=mode, cap=cap)
        with guidance.attach(pipe):
            images.append(generate(pipe))
        assert guidance.report.capped == 0
    assert images[0].equal(images[1])


@pytest.mark.parametrize("cap", [0.0, -1.0, math.inf, math.nan])
def test_a_cap_is_positive(cap):
    with pytest.raises(ValueError, match="cap must be positive and finite, or None, got"):
        Guidance(brightness, cap=cap)
