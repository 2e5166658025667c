"""Where a shift is not simply added: masks, predicted variances, doubled samples, schedulers that clip."""

import importlib

import pytest
import torch
from diffusers import DDPMScheduler
from helpers.factories import Recorder
from helpers.minimal_pipeline import brightness, loop, minimal_pipeline, modes
from helpers.pipelines import parts
from torch import nn

from clip_guidance.guidance import Guidance

# ---------------------------------------------------------------- masks


@pytest.mark.parametrize(
    ("module", "key"),
    [
        ("sd3", "StableDiffusion3InpaintPipeline"),
        ("flux", "FluxInpaintPipeline"),
        ("qwen_and_friends", "QwenImageInpaintPipeline"),
        pytest.param("flux", "FluxFillPipeline", marks=pytest.mark.slow),
        pytest.param("unet_pixels", "IFInpaintingPipeline", marks=pytest.mark.slow),
        pytest.param("unet_other", "KandinskyInpaintPipeline", marks=pytest.mark.slow),
        pytest.param("unet_other", "KandinskyV22InpaintPipeline", marks=pytest.mark.slow),
    ],
)
@modes
def test_the_mask_of_an_inpainting_run_masks_the_shift(mode, module, key):
    pipe, inputs = importlib.import_module(f"helpers.pipelines.{module}").PIPELINES[key]()
    if module == "unet_pixels":
        inputs["mask_image"] = parts.mask()

    def first_output(guidance=None):
        inputs["generator"].manual_seed(0)
        torch.manual_seed(0)
        recorder = Recorder(pipe.scheduler)
        if guidance is None:
            pipe(**inputs)
        else:
            with guidance.attach(pipe):
                pipe(**inputs)
        del pipe.scheduler.step
        return recorder.calls[0][0], recorder.calls[0][2]

    plain, sample = first_output()
    guided, _ = first_output(Guidance(brightness, scale=100.0, mode=mode))
    changed = (guided != plain).flatten(2).any(1) if sample.ndim == 4 else (guided != plain).any(2)
    if sample.ndim == 4:
        changed = changed.unflatten(1, sample.shape[2:])[0].any(0)  # columns
    else:
        columns = inputs["width"] // (pipe.vae_scale_factor * 2)
        changed = changed.unflatten(1, (-1, columns))[0].any(0)
    half = len(changed) // 2 - ("Kandinsky" in key)  # it paints one more column
    assert changed.tolist() == [False] * half + [True] * (len(changed) - half)


# ---------------------------------------------------------------- predicted variances


class WithVariance(nn.Module):
    def forward(self, sample, timestep):
        return torch.cat([0.5 * sample, 0.1 * sample], dim=1)


@modes
def test_a_predicted_variance_stays_as_it_is(mode):
    pipes = []
    for variance_type, unet in (("learned_range", WithVariance()), ("fixed_small", minimal_pipeline().unet)):
        pipe = minimal_pipeline()
        pipe.scheduler, pipe.unet = DDPMScheduler(variance_type=variance_type, clip_sample=False), unet
        pipes.append(pipe)
    calls = []
    for pipe in pipes:
        recorder = Recorder(pipe.scheduler)
        with Guidance(brightness, mode=mode, space="latent").attach(pipe):
            pipe.scheduler.set_timesteps(3)
            t, x = pipe.scheduler.timesteps[0], torch.ones(2, 3, 4)
            pipe.scheduler.step(pipe.unet(x, t), t, x)
        calls += recorder.calls
    (both, _, x), (mean, _, _) = calls
    assert both[:, :3].equal(mean) and not mean.equal(0.5 * x)
    assert both[:, 3:].equal(0.1 * x)


# ---------------------------------------------------------------- samples that are handed over twice


@modes
def test_a_doubled_sample_is_guided_once_and_a_reward_sees_each_image_once(mode):
    pipe, inputs = importlib.import_module("helpers.pipelines.dit_classic").PIPELINES["DiTPipeline"]()
    seen = []

    def reward(images):
        seen.append(len(images))
        return brightness(images)

    recorder = Recorder(pipe.scheduler)
    with Guidance(reward, mode=mode, scale=[50.0]).attach(pipe):
        pipe(**inputs)
    assert seen == [1] * len(recorder.calls)
    for output, _, sample in recorder.calls:
        assert len(output) == len(sample) == 2
        torch.testing.assert_close(output[0, : sample.shape[1]], output[1, : sample.shape[1]])


# ---------------------------------------------------------------- schedulers that clip


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@modes
def test_where_the_scheduler_clips_a_stronger_shift_does_not_turn_back(mode, scale):
    """DDIM clips x̂₀ but not ε: a shift beyond the range, written into ε, would push the sample the other way."""

    def upwards(x):
        return x.flatten(1).sum(1)

    def mean(**options):
        pipe = minimal_pipeline(clip_sample=True)
        with Guidance(upwards, mode=mode, space="latent", **options).attach(pipe):
            return loop(pipe, steps=6).mean().item()

    assert mean(scale=0.0) < mean(scale=scale) <= 1 + 1e-3


@modes
def test_a_shift_of_a_sample_that_is_beyond_the_range_may_only_lead_back(mode):
    pipe = minimal_pipeline(clip_sample=True, clip_sample_range=0.5)
    pipe.scheduler.set_timesteps(2)
    t, x = pipe.scheduler.timesteps[0], torch.tensor([[0.1, 3.0, -3.0]])
    recorder = Recorder(pipe.scheduler)
    with Guidance(lambda x: 5 * x.sum(1), mode=mode, space="latent").attach(pipe):
        pipe.scheduler.step(pipe.unet(x, t), t, x)
    (guided, _, _) = recorder.calls[0]
    alpha = pipe.scheduler.alphas_cumprod[t].sqrt()
    sigma = (1 - alpha**2).sqrt()
    plain, guided = ((x - sigma * m) / alpha for m in (0.5 * x, guided))
    assert guided[0, 0].item() == pytest.approx(0.5, abs=1e-5)
    assert guided[0, 1].item() == pytest.approx(plain[0, 1].item(), rel=1e-5)
    assert guided[0, 2].item() > plain[0, 2].item()
