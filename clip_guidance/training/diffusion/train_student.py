"""Train a student of few steps to draw what a diffusion model draws in many: ``clip-guidance train student``.

The student is a copy of the teacher's UNet, trained by multistep consistency distillation (Heek et al. 2024,
arXiv:2403.06807) with classifier-free guidance folded in; the equations are in :mod:`.student`. The result is a stock
``StableDiffusionPipeline``: with as many steps as there are segments and a guidance scale of 1 it ends near where the
teacher's guided steps end from the same noise.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from clip_guidance._files import write_atomically
from clip_guidance.generation.pipelines import load_pipeline
from clip_guidance.training.diffusion.checks import check_settings
from clip_guidance.training.diffusion.denoiser import CaptionedLatents, load_images, sample_sheet, token_ids
from clip_guidance.training.diffusion.student import (
    GuidedTeacher,
    HeldOutDistance,
    Ladder,
    StudentLoss,
    student_scheduler,
    teacher_pipeline,
    with_parts,
)
from clip_guidance.training.ema import make_ema_model
from clip_guidance.training.launch import make_accelerator
from clip_guidance.training.order import SampleOrder
from clip_guidance.training.output import errors_as_sentences, locked_output
from clip_guidance.training.settings import save_settings
from clip_guidance.training.trainer import Plan, fit


@dataclass(frozen=True)
class Settings:
    """Settings of one run; the defaults are a student of four steps."""

    data: str  # captioned images: a table, folder, tars or a data set of the Hub; see clip_guidance.data
    output: str  # folder for checkpoints, samples and the finished pipeline
    teacher: str  # StableDiffusionPipeline to imitate: a packaged one, its folder or a hub id
    init: str | None = None  # pipeline whose UNet the student begins with; by default the teacher's own
    exclude_captions_containing: str | None = None  # leave out images whose name, or a caption, contains this text
    validation: str | None = None  # captioned images: on their captions the distance to the teacher is measured
    validation_count: int = 256  # how many of them, the first ones
    size: int = 64  # side of the square images, in pixels
    teacher_steps: int = 40  # steps of the teacher, a divisor of its training timesteps
    segments: int = 4  # steps of the student, a divisor of teacher_steps; 1 makes a consistency function for LCM
    guidance_scale: float = 3.0  # of the teacher's classifier-free guidance, which the student learns; 1 is without
    guidance_rescale: float = 0.0  # share of the rescaling that takes back the overexposure of guidance
    steps: int = 6000  # optimizer steps
    batch_size: int = 64  # images per process and step
    learning_rate: float = 2e-4  # at the end of the warm-up
    weight_decay: float = 0.0  # of AdamW, on matrices and kernels
    random_flip: bool = False  # mirror each image with probability 1/2, where the data says that it may be
    caption_dropout: float = 0.1  # share of captions replaced by "", of which the student then knows as the teacher
    ema_decay: float = 0.998  # save the average of the weights over about 1/(1 - ema_decay) steps
    warmup: float = 100  # steps, or below 1 the share of all steps, in which the learning rate rises
    max_grad_norm: float = 1.0  # longer gradients are scaled down to this norm
    seed: int = 0  # of the order of the data and every random draw
    log_every: int = 20  # steps from one row of the log to the next
    save_every: int = 200  # steps from one checkpoint to the next
    sample_every: int = 400  # steps from one sheet of samples to the next
    evaluate_every: int = 400  # steps from one measurement on the validation captions to the next
    sample_prompts: list[str] = field(
        default_factory=lambda: ["twemoji butterfly", "noto red apple", "fluent 3d cat face", "blob grinning face"]
    )  # prompts of the sheet of samples, a row each

    @property
    def guidance(self) -> dict[str, float]:
        """The teacher's arguments of classifier-free guidance."""
        return {"guidance_scale": self.guidance_scale, "guidance_rescale": self.guidance_rescale}


def first_unet(settings: Settings, teacher: StableDiffusionPipeline) -> UNet2DConditionModel:
    """Return the UNet that the student begins with, ready to be trained."""
    known = load_pipeline(settings.init).unet if settings.init else teacher.unet
    unet = copy.deepcopy(known).float().requires_grad_(True)
    unet.to(teacher.device, memory_format=torch.channels_last)
    if teacher.device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # so few tokens: the fused kernel's backward takes twice the time
    return unet.eval()  # without dropout: it imitates itself


def train(settings: Settings, accelerator: Accelerator) -> None:
    """Train the student, and save the pipeline with the average of its weights."""
    device, folder = accelerator.device, Path(settings.output)
    teacher = teacher_pipeline(load_pipeline(settings.teacher)).to(device)
    config = teacher.scheduler.config
    ladder = Ladder(teacher.scheduler, settings.teacher_steps, settings.segments)
    data = load_images(settings.data, settings, accelerator)
    save_settings(settings, folder / "settings.json")
    torch.manual_seed(settings.seed)
    unet = first_unet(settings, teacher)
    average = make_ema_model(unet, settings.ema_decay)
    student = with_parts(teacher, average.module, student_scheduler(config, settings.teacher_steps, settings.segments))
    with torch.no_grad():
        no_text = teacher.text_encoder(token_ids(teacher, [""]).to(device))[0]
    order = SampleOrder(len(data), settings.batch_size, settings.seed, accelerator)
    options = (settings.seed, settings.random_flip, settings.caption_dropout)
    latents = CaptionedLatents(teacher, data, order, accelerator, *options)
    loss = StudentLoss(GuidedTeacher(teacher.unet, no_text, **settings.guidance), ladder, latents)
    held_out = None
    if settings.validation:
        unseen = load_images(settings.validation, settings, accelerator)
        unseen = unseen.subset(range(min(len(unseen), settings.validation_count)))
        steps = (settings.teacher_steps, settings.segments)
        held_out = HeldOutDistance(teacher, unseen, settings.size, *steps, settings.guidance)

    def after_step(done: int) -> dict[str, float]:
        if done % settings.sample_every == 0 and accelerator.is_main_process:
            call = {"num_inference_steps": settings.segments, "guidance_scale": 1.0}
            sample_sheet(student, settings.sample_prompts, call).save(folder / f"samples-{done:06d}.png")
        due = done % settings.evaluate_every == 0 or done == settings.steps
        return held_out(student) if held_out is not None and due else {}

    plan = Plan.of(settings, settings.steps, settings.learning_rate, order.global_batch_size)
    run = folder / "student-run"
    fit(accelerator, unet, loss, plan, run, phase="student", ema_model=average, after_step=after_step)
    if accelerator.is_main_process:
        student.save_pretrained(folder, safe_serialization=True)
        write_card(folder, settings, held_out(student) if held_out is not None else {})


def write_card(folder: Path, settings: Settings, distances: dict[str, float]) -> None:
    """Write the pipeline's README: how it is called, and how far it is from its teacher."""
    guided = f"{settings.teacher_steps} steps at a guidance scale of {settings.guidance_scale:g}"
    call = f"pipe(prompt, num_inference_steps={settings.segments}, guidance_scale=1.0)"
    lines = ["# A student of few steps", "", f"It imitates `{settings.teacher}` in {guided}, in this call:", ""]
    lines += ["```python", call, "```", ""]
    if distances:
        lines += ["| distance of the latents from the teacher's, root mean square | |", "| --- | --- |"]
        lines += [f"| of the student | {distances['held_out_distance']:.4f} |"]
        lines += [f"| of the teacher in as few steps | {distances['teacher_distance']:.4f} |", ""]
    with write_atomically(folder / "README.md") as partial:
        partial.write_text("\n".join(lines), encoding="utf-8")


def main(settings: Settings) -> None:
    """Train, and save the pipeline in ``output``.

    Raises:
        SystemExit: A setting is out of range, or the data, a model, the output or the launch cannot be used; the
            message says so.
    """
    check_settings(settings)
    accelerator = make_accelerator()
    with errors_as_sentences(), locked_output(settings.output, accelerator):
        train(settings, accelerator)
