"""Grey pipelines, and pipelines that nobody knows: what makes their images is given."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers.factories import Recorder
from helpers.minimal_pipeline import Denoiser, brightness, loop, minimal_pipeline, modes
from torch import nn

from clip_guidance.guidance import CLIPGuidance, CLIPReward, Guidance, plan_memory
from clip_guidance.guidance.adapters.pipelines import ADAPTERS
from clip_guidance.guidance.adapters.schedulers import SCHEDULERS

# ---------------------------------------------------------------- grey


def grey_pipeline(channels=1):
    torch.manual_seed(0)
    unet = UNet2DModel(8, channels, channels, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
                       down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))  # fmt: skip
    pipe = DDPMPipeline(unet.eval(), DDPMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@modes
def test_a_stock_pipeline_of_one_channel_is_steered(clip, mode):
    pipe, steps = grey_pipeline(), []
    guidance = CLIPGuidance(clip, "dog", 3.0, mode=mode, data_variance=0.25)

    def repeated(images):
        return guidance.reward(images.repeat(1, 3, 1, 1))

    for each in (guidance, Guidance(repeated, 3.0, mode, data_variance=0.25)):
        recorder = Recorder(pipe.scheduler)
        with each.attach(pipe):
            pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np")
        del pipe.scheduler.step
        steps.append([output for output, _, _ in recorder.calls])
        assert len(each.report.steps) == 3
    for one, other in zip(*steps, strict=True):
        torch.testing.assert_close(one, other)


def test_clips_logit_of_a_grey_image_is_that_of_its_three_equal_channels(clip):
    grey = torch.rand(2, 1, 9, 7)
    reward = CLIPReward(clip, "dog")
    torch.testing.assert_close(reward(grey), reward(grey.repeat(1, 3, 1, 1)))


# ---------------------------------------------------------------- to_image


def halves(sample):
    """Images (B, 3, 8, 8) of samples (B, 3, 8, 8) in [-1, 1]."""
    return sample / 2 + 0.5


class Doubling(nn.Module):
    """An own decoder, with weights."""

    def __init__(self):
        super().__init__()
        self.up = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, sample):
        return self.up(sample.repeat_interleave(2, -1)).sigmoid()


@modes
def test_the_images_that_are_given_are_what_the_reward_reads(clip, mode):
    pipe, seen = minimal_pipeline(), []

    def reward(images):
        seen.append(images.detach())
        return brightness(images)

    def clipped(latents):  # the same by a reward on the latents, whose gradient passes the clipping
        images = halves(latents)
        return brightness(images + (images.clamp(0, 1) - images).detach())

    steered = []
    for guidance in (Guidance(reward, 2.0, mode, to_image=halves), Guidance(clipped, 2.0, mode, space="latent")):
        with guidance.attach(pipe):
            steered.append(loop(pipe, shape=(2, 3, 8, 8)))
    torch.testing.assert_close(*steered)
    assert all(images.shape == (2, 3, 8, 8) and images.min() >= 0 and images.max() <= 1 for images in seen)
    with CLIPGuidance(clip, "dog", 20.0, mode=mode, to_image=halves).attach(pipe):
        assert not loop(pipe, shape=(2, 3, 8, 8)).equal(steered[0])


def test_a_network_that_makes_the_images_is_not_trained_by_the_way():
    pipe, decoder = minimal_pipeline(), Doubling()
    with Guidance(brightness, to_image=decoder).attach(pipe):
        assert not decoder.up.weight.requires_grad
        loop(pipe, shape=(1, 3, 8, 8))
    assert decoder.up.weight.requires_grad and decoder.up.weight.grad is None


BAD_IMAGES = [
    (lambda sample: sample[0], r"to_image must return images \(2, 3, H, W\) in \[0, 1\], got \(3, 8, 8\)"),
    (lambda sample: sample.mean(0, keepdim=True), r"got \(1, 3, 8, 8\)"),
    (lambda sample: sample.detach().numpy(), "got ndarray"),
    (lambda sample: sample.detach(), "to_image must be differentiable"),
]


@pytest.mark.parametrize(("to_image", "message"), BAD_IMAGES)
def test_what_are_no_images_is_refused(to_image, message):
    pipe = minimal_pipeline()
    with pytest.raises(ValueError, match=message), Guidance(brightness, to_image=to_image).attach(pipe):
        loop(pipe, shape=(2, 3, 8, 8))


def test_a_plan_of_the_memory_says_that_there_is_none():
    with pytest.raises(ValueError, match="guidance with to_image uses no decoder of the pipeline"):
        plan_memory(Guidance(brightness, to_image=halves), minimal_pipeline(), "1 GiB", 8, 8)


# ---------------------------------------------------------------- errors


def test_an_unknown_pipeline_is_told_three_near_names_and_the_cures():
    pipe = type("StableDifusionPipeline", (SimpleNamespace,), vars(minimal_pipeline()))()
    with pytest.raises(ValueError, match="how StableDifusionPipeline decodes its latents") as caught:
        Guidance(brightness).attach(pipe)
    message = str(caught.value)
    assert "StableDiffusionPipeline" in message and f"and {len(ADAPTERS) - 3} more" in message
    assert "to_image=" in message and "space='latent'" in message and len(message) <= 300


@pytest.mark.parametrize("name", ["OwnScheduler", "O" * 500])
def test_an_unknown_scheduler_is_told_three_near_names(name):
    pipe = SimpleNamespace(scheduler=type(name, (), {})(), unet=Denoiser())
    with pytest.raises(ValueError, match=f"and {len(SCHEDULERS) - 3} more; the pipeline's scheduler is a O") as caught:
        Guidance(brightness, space="latent").attach(pipe)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize("parts", [{}, {"scheduler": minimal_pipeline().scheduler}])
def test_what_an_unknown_pipeline_holds_is_not_told_at_length(parts):
    pipe = SimpleNamespace(**parts, **{f"part_{index}": index for index in range(99)})
    with pytest.raises(ValueError, match="SimpleNamespace holds part_0") as caught:
        Guidance(brightness).attach(pipe)
    assert len(str(caught.value)) <= 300
