"""Rewards that misbehave, and pipelines that can or cannot be guided."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMPipeline, UNet2DModel
from helpers.factories import generate, make_scheduler
from helpers.minimal_pipeline import Denoiser, Recording, brightness, loop, minimal_pipeline, modes

from clip_guidance.guidance import Guidance, UnsupportedSchedulerError
from clip_guidance.guidance.engine.decoder import Decoder

# ---------------------------------------------------------------- rewards that misbehave


@modes
def test_gradients_that_are_not_finite_are_dropped_for_their_sample_alone(mode):
    def reward(x):
        return brightness(x) * torch.tensor([1.0, float("nan")])[: len(x)]

    guidance = Guidance(reward, space="latent", mode=mode)
    pipe = minimal_pipeline()
    unguided = loop(pipe)
    with pytest.warns(UserWarning, match="left out 4 shifts that were not finite"), guidance.attach(pipe):
        images = loop(pipe)
    assert guidance.report.dropped == 4
    with Guidance(brightness, space="latent", mode=mode).attach(pipe):
        expected = loop(pipe)
    torch.testing.assert_close(images[0], expected[0])
    torch.testing.assert_close(images[1], unguided[1])


BAD_REWARDS = [
    (lambda x: brightness(x).mean(), r"one number per sample, shape \(2,\), got \(\)"),
    (lambda x: x, r"shape \(2,\), got \(2, 3, 4\)"),
    (lambda x: 1.0, r"shape \(2,\), got float"),
    (lambda x: brightness(x.detach()), "must be differentiable"),
]


@pytest.mark.parametrize(("reward", "message"), BAD_REWARDS)
def test_a_reward_that_is_none_is_refused(reward, message):
    pipe = minimal_pipeline()
    with pytest.raises(ValueError, match=message), Guidance(reward, space="latent").attach(pipe):
        loop(pipe)


def test_a_model_output_of_another_shape_is_refused():
    pipe = minimal_pipeline()
    pipe.scheduler.set_timesteps(2)
    x, t = torch.ones(1, 3, 4), pipe.scheduler.timesteps[0]
    message = r"sample's shape \(1, 3, 4\), .*, got \(1, 5, 4\) at step 0"
    with pytest.raises(ValueError, match=message), Guidance(brightness, space="latent").attach(pipe):
        pipe.scheduler.step(torch.ones(1, 5, 4), t, x)


def test_exchanging_the_scheduler_is_reported():
    pipe = minimal_pipeline()
    with (
        pytest.warns(UserWarning, match="exchanged while guidance was attached to its DDIMScheduler"),
        Guidance(brightness, space="latent").attach(pipe),
    ):
        pipe.scheduler = make_scheduler("euler")


# ---------------------------------------------------------------- pipelines


class NewPipeline(SimpleNamespace):
    pass


BAD_PIPES = [
    ({"unet": Denoiser()}, {}, "needs a pipeline with a scheduler; NewPipeline holds unet"),
    (
        {"scheduler": make_scheduler("ddim"), "vae": 1},
        {},
        "a module named unet or transformer.*; NewPipeline holds scheduler, vae",
    ),
    (
        {"scheduler": make_scheduler("ddim"), "unet": Denoiser()},
        {},
        "how NewPipeline decodes .*space='latent'",
    ),
]


@pytest.mark.parametrize(("parts", "options", "message"), BAD_PIPES)
def test_a_pipeline_that_cannot_be_guided_is_refused_at_attach(parts, options, message):
    with pytest.raises(ValueError, match=message):
        Guidance(brightness, **options).attach(NewPipeline(**parts))


def test_an_unknown_scheduler_is_refused_at_attach():
    class NewScheduler:
        pass

    with pytest.raises(UnsupportedSchedulerError, match="noise levels of .*Scheduler and .* is a NewScheduler"):
        Guidance(brightness, space="latent").attach(NewPipeline(scheduler=NewScheduler(), unet=Denoiser()))


def test_a_transformer_is_a_denoiser_too():
    pipe = NewPipeline(scheduler=make_scheduler("ddim"), transformer=Denoiser(), unet=None)
    pipe.scheduler.set_timesteps(2)
    x, t = torch.ones(1, 3, 4), pipe.scheduler.timesteps[0]
    guidance = Guidance(brightness, space="latent", mode="exact")
    with guidance.attach(pipe):
        pipe.scheduler.step(pipe.transformer(x, t), t, x)
    assert guidance.report.steps == [0]


@modes
def test_a_pixel_pipeline_is_guided_in_pixels_with_a_quarter_of_the_variance(mode):
    torch.manual_seed(0)
    unet = UNet2DModel(8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
                       down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))  # fmt: skip
    pipe = DDIMPipeline(unet.eval(), make_scheduler("ddim"))
    pipe.set_progress_bar_config(disable=True)

    def run(**options):
        reward = Recording()
        with Guidance(reward, scale=0.5, mode=mode, **options).attach(pipe):
            image = pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type="pt")
        return image.images, reward.inputs[0]

    image, seen = run()
    assert seen.shape == (1, 3, 8, 8)
    assert 0 <= seen.min() < seen.max() <= 1
    assert (run(data_variance=0.25)[0] == image).all()
    # "exact" has the variance in its bound alone, which these random weights meet.
    assert not run(data_variance=1.0)[0].equal(image)


def test_decoding_is_the_pipelines_own(tiny_pipeline):
    pipe = tiny_pipeline()
    expected = generate(pipe, output_type="pt")
    latents = generate(pipe)
    torch.testing.assert_close(Decoder(pipe, "image")(latents), expected)
    assert Decoder(pipe, "latent")(latents) is latents


def test_saturated_pixels_stay_in_range_and_keep_their_gradient(tiny_pipeline):
    pipe = SimpleNamespace(**tiny_pipeline().components)
    pipe.vae = SimpleNamespace(
        config=SimpleNamespace(scaling_factor=0.5, shift_factor=0.25),
        dtype=torch.float32,
        decode=lambda z, return_dict: (z,),
    )
    pipe = type("StableDiffusion3Pipeline", (), {**vars(pipe), "transformer": pipe.unet})()
    latents = torch.tensor([[[[-9.0, 0.0, 9.0]]]], requires_grad=True)
    images = Decoder(pipe, "image")(latents)
    assert images.tolist() == [[[[0.0, 0.625, 1.0]]]]
    assert torch.autograd.grad(images.sum(), latents)[0].tolist() == [[[[1.0, 1.0, 1.0]]]]
