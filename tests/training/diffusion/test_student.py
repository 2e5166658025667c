"""A student of few steps: its loss in closed form on Gaussian data, and a run of the program, resumed to the bit."""

import json

import pytest
import torch
from accelerate import Accelerator
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)
from helpers.factories import make_pipeline, make_scheduler
from helpers.factories.pipelines import Recorder, generate
from helpers.interrupted import train_interrupted
from helpers.tables import write_table
from torch import nn

from clip_guidance.clip.hub import ModelError
from clip_guidance.data.dataset import CaptionedImages, Row
from clip_guidance.training.diffusion import student, train_student
from clip_guidance.training.diffusion.denoiser import LatentBatch

MEAN, STD = 0.3, 0.8
PREDICTIONS = ["v_prediction", *(pytest.param(each, marks=pytest.mark.slow) for each in ("epsilon", "sample"))]


class Output:
    def __init__(self, sample):
        self.sample = sample


class Gaussian(nn.Module):
    """The ideal denoiser of N(MEAN, STD²), by the formulae of the scheduler's documentation."""

    def __init__(self, scheduler):
        super().__init__()
        self.scheduler = scheduler

    def level(self, timesteps):
        alpha_prod = self.scheduler.alphas_cumprod.double()[timesteps].view(-1, 1, 1, 1)
        return alpha_prod.sqrt(), (1 - alpha_prod).sqrt()

    def output(self, x, x0, timesteps):
        alpha, sigma = self.level(timesteps)
        epsilon = (x - alpha * x0) / sigma
        kinds = {"epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * x0, "sample": x0}
        return kinds[self.scheduler.config.prediction_type]

    def clean(self, x, timesteps):
        alpha, sigma = self.level(timesteps)
        return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)

    def forward(self, x, timesteps, text=None):
        return Output(self.output(x, self.clean(x, timesteps), timesteps))


class Exact(Gaussian):
    """At each timestep the x̂₀ by which one step leads to where the stock scheduler's steps end."""

    def __init__(self, scheduler, steps, segments):
        super().__init__(scheduler)
        self.steps, self.per_segment = steps, steps // segments

    def clean(self, x, timesteps):
        rows = zip(x.split(1), timesteps.tolist(), strict=True)
        return torch.cat([self.one(row, t) for row, t in rows])

    def one(self, x, t):
        every = 1000 // self.steps
        level = (t + 1) // every
        if level == 0:
            return x  # of a step from the clean end, which nobody takes
        end, ddim = (level - 1) // self.per_segment * self.per_segment, self.scheduler
        ddim.set_timesteps(self.steps)
        moved = x
        for each in range(level, end, -1):
            at = torch.tensor([each * every - 1])
            output = self.output(moved, super().clean(moved, at), at)
            moved = ddim.step(output, int(at), moved).prev_sample
        (alpha, sigma) = self.level(torch.tensor([t]))
        last = self.level(torch.tensor([end * every - 1])) if end else (torch.ones(1), torch.zeros(1))
        ratio = last[1] / sigma
        return (moved - ratio * x) / (last[0] - ratio * alpha)


def ddim(prediction="v_prediction"):
    return student.trailing_ddim(make_scheduler("ddim", prediction_type=prediction, clip_sample=True).config)


def batch_of(latents, text):
    """A batch of the images 0, 1, 2, ..., none mirrored."""
    return LatentBatch(latents, text, torch.arange(len(latents)), torch.zeros(len(latents), dtype=torch.bool))


def loss_of(scheduler, steps, segments, latents=None):
    teacher = Gaussian(scheduler)
    ladder = student.Ladder(scheduler, steps, segments)
    return student.StudentLoss(lambda *inputs: teacher(*inputs).sample, ladder, latents)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_zero_of_the_exact_student_alone(prediction):
    scheduler, steps, segments = ddim(prediction), 8, 2
    loss = loss_of(scheduler, steps, segments)
    level = torch.arange(1, steps + 1)
    x = torch.randn(steps, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert loss.at(Exact(scheduler, steps, segments), x, level, None) < 1e-9
    assert loss.at(Gaussian(scheduler), x, level, None) > 1e-3
    assert loss.at(Exact(scheduler, steps, 1), x, level, None) > 1e-3  # of other segments


def test_the_loss_draws_every_level_and_the_noise_of_it():
    scheduler, seen = ddim(), []
    x0 = torch.full((4000, 1, 1, 1), 2.0, dtype=torch.float64)
    loss = loss_of(scheduler, 4, 2, latents=lambda step: batch_of(x0, torch.zeros(4000, 1, 1)))
    torch.manual_seed(0)
    model = Gaussian(scheduler)
    loss(lambda x, t, text: seen.append((x, t)) or model(x, t), 0)
    x, timesteps = seen[-1]
    assert timesteps.unique(return_counts=True)[1].tolist() == [1000] * 4
    for t in (249, 999):
        alpha, sigma = (value.item() for value in model.level(torch.tensor([t])))
        at = x[timesteps == t]
        assert (at.mean().item(), at.std().item()) == pytest.approx((2 * alpha, sigma), abs=0.1)


class Affine(nn.Module):
    """A student of the right form: an affine function at each level."""

    def __init__(self, levels):
        super().__init__()
        self.every, self.weights = 1000 // levels, nn.Parameter(torch.zeros(levels + 1, 2, dtype=torch.float64))

    def forward(self, x, timesteps, text=None):
        slope, offset = self.weights[(timesteps + 1) // self.every].view(-1, 2, 1, 1, 1).unbind(1)
        return Output(slope * x + offset)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "segments"), [(20, 4), (8, 1)])
def test_a_student_comes_to_the_teachers_end(steps, segments):
    """By the stock scheduler, from the same noise; the teacher in as few steps does not."""
    scheduler = ddim()
    data = MEAN + STD * torch.randn(200, 256, 1, 1, 1, generator=torch.Generator().manual_seed(1)).double()
    loss = loss_of(scheduler, steps, segments, latents=lambda step: batch_of(data[step % 200], None))
    torch.manual_seed(0)
    model, count = Affine(steps), 1000
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in range(count):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / count)
        optimizer.zero_grad()
        value = loss(model, step)["loss"]
        value.backward()
        optimizer.step()
    noise = torch.randn(64, 1, 1, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    @torch.no_grad()
    def end(network, scheduler, count):
        x = noise
        scheduler.set_timesteps(count)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t[None]).sample, t, x).prev_sample
        return x

    expected = end(Gaussian(scheduler), scheduler, steps)
    own = student.student_scheduler(scheduler.config, steps, segments)
    found = end(model, own, segments)
    few = (end(Gaussian(scheduler), scheduler, segments) - expected).abs().max()
    print(f"\n{steps} in {segments}: student off by {(found - expected).abs().max():.2g}, the teacher by {few:.2g}")
    assert (found - expected).abs().max() < 2e-3 < few / 20


def test_the_ladder_is_that_of_the_schedulers():
    scheduler = ddim()
    ladder = student.Ladder(scheduler, 40, 4)
    level = torch.arange(1, 41)
    starts = ladder.timesteps[1:][ladder.end(level) == level - ladder.per_segment]
    for own, steps in ((student.student_scheduler(scheduler.config, 40, 4), 4), (scheduler, 40)):
        own.set_timesteps(steps)
        expected = starts if steps == 4 else ladder.timesteps[1:]
        assert isinstance(own, DDIMScheduler) and own.timesteps.flip(0).equal(expected)
    lcm = student.student_scheduler(scheduler.config, 40, 1)
    for steps in (1, 4, 8):
        lcm.set_timesteps(steps)
        assert isinstance(lcm, LCMScheduler) and set(lcm.timesteps.tolist()) <= set(ladder.timesteps.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_the_teacher_is_guided_as_the_stock_pipeline_is(rescale):
    pipe = student.teacher_pipeline(make_pipeline())
    recorder = Recorder(pipe.scheduler)
    generate(pipe, ["cat", "dog"], seeds=(0, 1), steps=2, guidance_rescale=rescale)
    texts, none = pipe.encode_prompt(["cat", "dog"], "cpu", 1, True)
    for guided, t, x in recorder.calls:
        teacher = student.GuidedTeacher(pipe.unet, none[:1], 3.0, rescale)
        torch.testing.assert_close(teacher(x, t.expand(2), texts), guided, rtol=0, atol=1e-6)
    plain = student.GuidedTeacher(pipe.unet, none[:1], 1.0)(x, t.expand(2), texts)
    torch.testing.assert_close(plain, pipe.unet(x, t, texts).sample, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_distance_is_zero_of_who_takes_the_teachers_steps():
    pipe = student.teacher_pipeline(make_pipeline())
    data = CaptionedImages(torch.zeros(3, 3, 16, 16, dtype=torch.uint8), [Row("cat", "noto", ())] * 3)
    same = student.HeldOutDistance(pipe, data, 16, 4, 4, {"guidance_scale": 1.0, "guidance_rescale": 0.0})
    assert same(pipe) == {"held_out_distance": 0.0, "teacher_distance": 0.0}
    guided = student.HeldOutDistance(pipe, data, 16, 4, 2, {"guidance_scale": 3.0, "guidance_rescale": 0.0})
    noise = guided.noise
    call = {"prompt": ["a noto picture of a cat"] * 3, "latents": noise, "output_type": "latent"}
    many = pipe(num_inference_steps=4, guidance_scale=3.0, **call).images
    few = pipe(num_inference_steps=2, guidance_scale=1.0, **call).images
    expected = (many - few).square().mean().sqrt().item()
    assert guided(pipe)["held_out_distance"] == pytest.approx(expected, rel=1e-5) != 0


def test_what_cannot_be_imitated_is_refused():
    with pytest.raises(ModelError, match="teacher: expected a StableDiffusionPipeline, got object"):
        student.teacher_pipeline(object())
    pipe = make_pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ModelError, match="diffusion with ᾱ .alphas_cumprod., got FlowMatchEulerDiscreteScheduler"):
        student.teacher_pipeline(pipe)
    scheduler = ddim()
    with pytest.raises(ModelError, match="teacher_steps: expected a divisor of 1000, got 30"):
        student.Ladder(scheduler, 30, 3)
    with pytest.raises(ModelError, match="segments: expected a divisor of 40, got 3"):
        student.Ladder(scheduler, 40, 3)


@pytest.mark.slow
@pytest.mark.parametrize("segments", [2, 1])
def test_training_goes_on_where_it_was_stopped(tmp_path, segments):
    teacher = make_pipeline()
    teacher.scheduler = EulerDiscreteScheduler.from_config(teacher.scheduler.config)  # any schedule of ᾱ will do
    teacher.save_pretrained(tmp_path / "teacher")
    table = str(write_table(tmp_path / "train.parquet", ["cat", "dog", "bus", "tree"], size=16))
    kinds = {"data": table, "teacher": str(tmp_path / "teacher"), "size": 16, "teacher_steps": 4, "segments": segments}
    kinds |= {"steps": 3, "batch_size": 2, "warmup": 1, "save_every": 1, "evaluate_every": 2, "sample_every": 2}
    kinds |= {"random_flip": True, "sample_prompts": ["cat"]}
    whole = tmp_path / "whole"
    train_student.train(train_student.Settings(output=str(whole), validation=table, **kinds), Accelerator(cpu=True))
    train_interrupted(train_student, train_student.Settings(output=str(tmp_path / "parts"), **kinds))
    made, resumed = (DiffusionPipeline.from_pretrained(tmp_path / name) for name in ("whole", "parts"))
    for name, value in made.unet.state_dict().items():
        assert resumed.unet.state_dict()[name].equal(value), name
    assert any(not value.equal(made.unet.state_dict()[name]) for name, value in teacher.unet.state_dict().items())
    assert type(made.scheduler) is (DDIMScheduler if segments > 1 else LCMScheduler)
    image = made("cat", num_inference_steps=segments, guidance_scale=1.0, output_type="np").images[0]
    assert image.shape == (16, 16, 3) and (whole / "samples-000002.png").is_file()
    rows = [json.loads(line) for line in (whole / "student-run" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 3 and rows[-1]["held_out_distance"] > 0
    card = (whole / "README.md").read_text()
    assert f"num_inference_steps={segments}, guidance_scale=1.0" in card
    assert f"| {rows[-1]['held_out_distance']:.4f} |" in card
