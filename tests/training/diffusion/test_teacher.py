"""What a trained denoiser teaches another one, and when."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

from clip_guidance.clip import ModelError
from clip_guidance.training.diffusion.denoiser import make_scheduler
from clip_guidance.training.diffusion.teacher import Teacher

CAPTIONS = ["a cat", "a dog", "", "a cow"]
TIMES = torch.tensor([999, 300, 750, 500])


class Reader(nn.Module):
    """Encodes a caption as its length."""

    def forward(self, ids):
        return (ids[:, :, None].float(),)


class Speaker(nn.Module):
    """Predicts the length of the caption everywhere, and remembers what it was asked."""

    def __init__(self, channels, size=2):
        super().__init__()
        self.config, self.asked = SimpleNamespace(in_channels=channels, sample_size=size), None

    def forward(self, x, timesteps, text):
        self.asked = x, timesteps
        return SimpleNamespace(sample=text.mean((1, 2))[:, None, None, None].expand_as(x))


def tokenizer(captions, **_):
    return SimpleNamespace(input_ids=torch.tensor([[len(caption)] for caption in captions]))


def pipeline(channels, scheduler=None, size=2):
    parts = {"unet": Speaker(channels, size), "text_encoder": Reader(), "tokenizer": tokenizer}
    return SimpleNamespace(**parts, scheduler=scheduler or make_scheduler(), vae=SimpleNamespace(device="cpu"))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_target_is_the_teachers_at_the_noisiest_time_and_the_images_own_in_the_middle(share):
    velocity, x = torch.randn(2, 4, 3, 2, 2)
    target = Teacher(pipeline(2), pipeline(3), share)(velocity, x, TIMES, CAPTIONS)
    for row, (caption, time) in enumerate(zip(CAPTIONS, TIMES.tolist(), strict=True)):
        weight = share * max(0, 2 * time / 1000 - 1)
        expected = (1 - weight) * velocity[row, :2] + weight * len(caption)
        torch.testing.assert_close(target[row, :2], expected)
    assert target[:, 2:].equal(velocity[:, 2:])  # which the teacher does not know
    assert target[TIMES <= 500].equal(velocity[TIMES <= 500])


def test_the_teacher_is_asked_of_what_it_knows_where_it_teaches():
    teacher, x = Teacher(pipeline(2), pipeline(3)), torch.randn(4, 3, 2, 2)
    teacher(torch.zeros_like(x), x, TIMES, CAPTIONS)
    asked, times = teacher.unet.asked
    assert times.tolist() == [999, 750] and asked.equal(x[[0, 2], :2])


def test_no_noisy_time_teaches_nothing():
    velocity = torch.randn(2, 3, 2, 2)
    target = Teacher(pipeline(2), pipeline(3))(velocity, velocity, torch.tensor([0, 499]), ["a", "b"])
    assert target.equal(velocity)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (SimpleNamespace(transformer=None), "expected a pipeline with a UNet, got SimpleNamespace"),
        (pipeline(2, DDIMScheduler()), "expected a model of v_prediction, got epsilon"),
        (
            pipeline(2, FlowMatchEulerDiscreteScheduler()),
            "expected a model of v_prediction, got the scheduler FlowMatchEulerDiscreteScheduler",
        ),
        (pipeline(4), "expected latents of at most 3x2x2, got 4x2x2"),
        (pipeline(2, size=4), "expected latents of at most 3x2x2, got 2x4x4"),
        (pipeline(2, DDIMScheduler(prediction_type="v_prediction")), "its schedule of noise is another one"),
    ],
)
def test_who_speaks_of_something_else_is_refused(other, message):
    with pytest.raises(ModelError, match=f"^--teacher: {message}$"):
        Teacher(other, pipeline(3))
