"""The shift from x̂₀, α and σ alone is the one that an attached guidance writes into the model output."""

import pytest
import torch
from helpers.minimal_pipeline import brightness, loop, minimal_pipeline
from torch import nn

import clip_guidance as cg
from clip_guidance.guidance import X0Steering
from clip_guidance.guidance.adapters.schedulers import noise_level, prediction_type

STEPS = 4


def own_loop(pipe, guidance):
    """A loop that lets its x̂₀ be shifted, and makes the model output of it."""
    scheduler, steering = pipe.scheduler, X0Steering(guidance)
    scheduler.set_timesteps(STEPS)
    x = torch.randn((2, 3, 4), generator=torch.Generator().manual_seed(0))
    for step, t in enumerate(scheduler.timesteps):
        output = pipe.unet(scheduler.scale_model_input(x, t), t)
        kind, level = prediction_type(scheduler), noise_level(scheduler, t)
        x0 = kind.to_x0(output, x, level)
        shift = steering.shift(x0, level.alpha, level.sigma, step=step, steps=STEPS)
        x = scheduler.step(kind.write_back(output, shift, level), t, x).prev_sample
    steering.end()
    return x


@pytest.mark.parametrize(
    ("scheduler", "config"),
    [("ddim", {}), ("ddim", {"prediction_type": "v_prediction"}), ("euler", {}), ("dpm", {})],
)
def test_a_loop_of_ones_own_is_steered_as_by_attach(scheduler, config):
    guidance = cg.Guidance(
        brightness, [3.0, -1.0], space="latent", start=0.25, every=2, damping=0.3, schedule=lambda done: 1 - done
    )
    pipe = minimal_pipeline(scheduler, **config)
    found = own_loop(pipe, guidance)
    steps, rewards = guidance.report.steps, torch.stack(guidance.report.rewards)
    with guidance.attach(pipe):
        expected = loop(pipe, STEPS, (2, 3, 4))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert steps == guidance.report.steps == [1, 2]
    torch.testing.assert_close(rewards, torch.stack(guidance.report.rewards), rtol=0, atol=1e-5)


def test_the_shift_is_the_closed_form():
    guidance = cg.Guidance(lambda x: 2 * x.flatten(1).sum(1), 1.5, space="latent", data_variance=0.64)
    shift = X0Steering(guidance).shift(torch.zeros(1, 4), 0.6, 0.8, step=0, steps=1)
    w = 0.64 * 0.64 / (0.36 * 0.64 + 0.64)
    torch.testing.assert_close(shift, torch.full((1, 4), 1.5 * w * 2))


class Doubling(nn.Module):
    """An autoencoder whose images are brighter by a weight."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def decode(self, latents, return_dict=False):
        return (self.gain * latents,)


def test_the_autoencoder_decodes_what_is_denormalised():
    guidance = cg.Guidance(lambda images: images.sum((1, 2, 3)))
    autoencoder = Doubling()
    steering = X0Steering(guidance, autoencoder, lambda x: 4 * x)
    shift = steering.shift(torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16), 1.0, 1.0, step=0, steps=1)
    torch.testing.assert_close(shift, torch.full((1, 3, 2, 2), 0.5 * 0.5 * 4 * 0.5))  # w, [-1, 1] to [0, 1], 4, gain
    assert autoencoder.gain.requires_grad and autoencoder.gain.grad is None


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (cg.Guidance(brightness, mode="exact", space="latent"), "steered in mode 'x0', .* got mode='exact', cap=None"),
        (cg.Guidance(brightness, cap=1.0, space="latent"), "steered in mode 'x0', .* got mode='x0', cap=1.0"),
        (cg.Guidance(brightness), "give an autoencoder, or a guidance with to_image or space='latent'"),
    ],
)
def test_what_needs_more_than_x0_is_refused(guidance, message):
    with pytest.raises(ValueError, match=message) as error:
        X0Steering(guidance)
    assert len(str(error.value)) <= 300


@pytest.mark.parametrize(
    ("alpha", "sigma", "step", "message"),
    [
        (1.5, 1.0, 0, r"expected alpha in \[0, 1\], .* got alpha=1.5, sigma=1, step=0, steps=4"),
        (1.0, float("inf"), 0, "got alpha=1, sigma=inf"),
        (1.0, 1.0, 4, "got alpha=1, sigma=1, step=4, steps=4"),
    ],
)
def test_a_number_out_of_range_is_refused(alpha, sigma, step, message):
    with pytest.raises(ValueError, match=message):
        X0Steering(cg.Guidance(brightness, space="latent")).shift(torch.zeros(1, 4), alpha, sigma, step=step, steps=4)


def test_a_run_that_is_not_steered_is_told():
    steering = X0Steering(cg.Guidance(brightness, space="latent", start=0.9))
    assert not steering.shift(torch.ones(1, 4), 1.0, 1.0, step=0, steps=2).any()
    with pytest.warns(UserWarning, match="guidance steered no step of a run: start=0.9"):
        steering.end()
