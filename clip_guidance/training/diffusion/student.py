"""A student of few steps: what it learns from a teacher of many, and how far from the teacher it ends.

The teacher takes N steps of DDIM (Song et al. 2021, arXiv:2010.02502) down a ladder of noise levels N, ..., 0, each by
its prediction after classifier-free guidance. The ladder is cut into K segments of N/K levels. At level n the student
predicts the x̂₀ by which one step of DDIM leads to the end e of the segment straight away:

    x_e  =  α_e·x̂₀ + (σ_e/σ_n)·(x_n − α_n·x̂₀).

It learns from itself, one step of the teacher further down. From a noisy latent x_n,

    x_{n−1}  =  the teacher's step from x_n,
    x_e      =  x_{n−1} if that is the end, else the student's step from x_{n−1}, without a gradient,
    loss     =  ‖x̂₀(x_n) − target‖²/σ_n²,    target: the x̂₀ by which one step leads from x_n to x_e.

The division makes it the squared error of the velocity, as in the teacher's own training. The target is of the weights
as they are, not of their average: what is learnt at the end of a segment climbs N/K levels to its start, and would wait
at each for the average.

This is multistep consistency distillation (Heek et al. 2024, arXiv:2403.06807, algorithm 2). With K = 1 it is
consistency distillation (Song et al. 2023, arXiv:2303.01469) with the guidance folded in, as in latent consistency
models (Luo et al. 2023, arXiv:2310.04378); a halving of N/K = 2 is one round of progressive distillation (Salimans & Ho
2022, arXiv:2202.00512).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor, nn

from clip_guidance.clip.hub import ModelError
from clip_guidance.data.dataset import CaptionedImages
from clip_guidance.guidance.adapters.noise_level import NoiseLevel
from clip_guidance.guidance.adapters.schedulers import noise_level, prediction_type
from clip_guidance.training.diffusion.denoiser import CaptionedLatents, strata


def teacher_pipeline(pipeline: Any) -> StableDiffusionPipeline:
    """Return the pipeline, its networks frozen, with the DDIM scheduler that the student is to imitate.

    Raises:
        ModelError: It is no ``StableDiffusionPipeline``, or its scheduler has no ᾱ.
    """
    if not isinstance(pipeline, StableDiffusionPipeline):
        raise ModelError(f"teacher: expected a StableDiffusionPipeline, got {type(pipeline).__name__}")
    if not hasattr(pipeline.scheduler, "alphas_cumprod"):
        name = type(pipeline.scheduler).__name__
        raise ModelError(f"teacher: expected a scheduler of a diffusion with ᾱ (alphas_cumprod), got {name}")
    for network in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        network.float().eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return with_parts(pipeline, pipeline.unet, trailing_ddim(pipeline.scheduler.config))


def with_parts(pipeline: StableDiffusionPipeline, unet: nn.Module, scheduler: Any) -> StableDiffusionPipeline:
    """Make a pipeline with another UNet and scheduler, and no checker."""
    parts = {"unet": unet, "scheduler": scheduler, "safety_checker": None}
    made = StableDiffusionPipeline(**{**pipeline.components, **parts}, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def trailing_ddim(config: Any) -> DDIMScheduler:
    """Make the scheduler whose K steps begin at the last timestep and go from segment to segment."""
    changes = {"clip_sample": False, "thresholding": False, "set_alpha_to_one": True}
    return DDIMScheduler.from_config(config, timestep_spacing="trailing", **changes)


def student_scheduler(config: Any, teacher_steps: int, segments: int) -> DDIMScheduler | LCMScheduler:
    """Make the scheduler of the student: DDIM, or for one segment, a consistency function, LCM's on the same ladder."""
    if segments > 1:
        return trailing_ddim(config)
    changes = {"clip_sample": False, "thresholding": False, "set_alpha_to_one": True}
    return LCMScheduler.from_config(config, original_inference_steps=teacher_steps, **changes)


class Ladder:
    """The noise levels of the teacher's steps, of which 0 is clean, and the steps between them.

    Levels are int64 (B,), samples (B, C, h, w).

    Args:
        scheduler: DDIM, whose ᾱ and prediction type they are.
        teacher_steps: N, a divisor of the number of training timesteps.
        segments: K, a divisor of N.

    Raises:
        ModelError: A number is no such divisor.
    """

    def __init__(self, scheduler: DDIMScheduler, teacher_steps: int, segments: int):
        total = scheduler.config.num_train_timesteps
        for name, value, whole in (("teacher_steps", teacher_steps, total), ("segments", segments, teacher_steps)):
            if value < 1 or whole % value:
                raise ModelError(f"{name}: expected a divisor of {whole}, got {value}")
        self.levels, self.per_segment = teacher_steps, teacher_steps // segments
        self.timesteps = (torch.arange(teacher_steps + 1) * (total // teacher_steps) - 1).clamp(min=0)
        known = [NoiseLevel(1.0, 0.0), *(noise_level(scheduler, t) for t in self.timesteps[1:])]
        kind = prediction_type(scheduler)
        columns = (lambda n: n.alpha, lambda n: n.sigma, kind.sample_weight, kind.output_weight)
        self.alpha, self.sigma, self.sample_weight, self.output_weight = torch.tensor(
            [[column(n) for n in known] for column in columns], dtype=torch.float64
        )

    def end(self, level: Tensor) -> Tensor:
        """Return the level at which the segment of a step from ``level`` ends."""
        return (level - 1) // self.per_segment * self.per_segment

    def noisy(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Mix clean samples with noise."""
        return _at(self.alpha, level, x0) * x0 + _at(self.sigma, level, x0) * noise

    def x0(self, output: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """Return what a model output at ``x`` says of x₀, in float32 or better."""
        return _at(self.sample_weight, level, x) * x + _at(self.output_weight, level, x) * output.to(x)

    def step(self, x: Tensor, x0: Tensor, level: Tensor, end: Tensor) -> Tensor:
        """Take DDIM's step from ``level`` to ``end``."""
        ratio = _at(self.sigma, end, x) / _at(self.sigma, level, x)
        return _at(self.alpha, end, x) * x0 + ratio * (x - _at(self.alpha, level, x) * x0)

    def x0_between(self, x: Tensor, x_end: Tensor, level: Tensor, end: Tensor) -> Tensor:
        """Return the x̂₀ by which one step leads from ``x`` to ``x_end``."""
        ratio = _at(self.sigma, end, x) / _at(self.sigma, level, x)
        return (x_end - ratio * x) / (_at(self.alpha, end, x) - ratio * _at(self.alpha, level, x))


def _at(table: Tensor, level: Tensor, x: Tensor) -> Tensor:
    return table.to(x)[level.to(x.device)].view(-1, *[1] * (x.ndim - 1))


class GuidedTeacher:
    """The teacher's model output after classifier-free guidance, without a gradient.

    Args:
        unet: The teacher's network.
        no_text: States (1, L, d) of the empty text.
        guidance_scale: At least 1, which is no guidance.
        guidance_rescale: Share in [0, 1] of the rescaling of Lin et al. 2024 (arXiv:2305.08891, section 3.4).
    """

    def __init__(self, unet: nn.Module, no_text: Tensor, guidance_scale: float, guidance_rescale: float = 0.0):
        self.unet, self.no_text = unet, no_text
        self.guidance_scale, self.guidance_rescale = guidance_scale, guidance_rescale

    @torch.no_grad()
    def __call__(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        if self.guidance_scale <= 1:
            return self.unet(x, timesteps, text).sample.float()
        texts = torch.cat([self.no_text.to(text).expand_as(text), text])
        without, given = self.unet(x.repeat(2, 1, 1, 1), timesteps.repeat(2), texts).sample.float().chunk(2)
        guided = without + self.guidance_scale * (given - without)
        return rescale_noise_cfg(guided, given, self.guidance_rescale) if self.guidance_rescale else guided


class StudentLoss:
    """The loss of a step, at levels and noise drawn for each latent.

    Args:
        teacher: From (samples, timesteps, text states) to the model output that is imitated.
        ladder: The levels.
        latents: From the number of the step to clean latents (B, C, h, w) and the states of their texts (B, L, d).
    """

    def __init__(self, teacher: GuidedTeacher, ladder: Ladder, latents: CaptionedLatents):
        self.teacher, self.ladder, self.latents = teacher, ladder, latents

    def __call__(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        batch = self.latents(step)
        x0, text = batch.latents, batch.text
        level = 1 + (strata(len(x0)) * self.ladder.levels).long()
        x = self.ladder.noisy(x0, torch.randn_like(x0), level)
        return {"loss": self.at(model, x, level, text)}

    def at(self, model: nn.Module, x: Tensor, level: Tensor, text: Tensor) -> Tensor:
        """Compute the loss, a scalar, at noisy samples (B, C, h, w) of levels (B,) with texts (B, L, d)."""
        ladder, end, timesteps = self.ladder, self.ladder.end(level), self.ladder.timesteps.to(x.device)
        level, end = level.to(x.device), end.to(x.device)
        with torch.no_grad():
            below = level - 1
            x_below = ladder.step(x, ladder.x0(self.teacher(x, timesteps[level], text), x, level), level, below)
            own = ladder.x0(model(x_below, timesteps[below], text).sample, x_below, below)
            is_end = (below == end).view(-1, *[1] * (x.ndim - 1))
            x_end = torch.where(is_end, x_below, ladder.step(x_below, own, below, end))
            target = ladder.x0_between(x, x_end, level, end)
        found = ladder.x0(model(x, timesteps[level], text).sample, x, level)
        return ((found - target) / _at(ladder.sigma, level, x)).square().mean()


class HeldOutDistance:
    """Measure how far the student's K steps end from the teacher's N, from the same noise with unseen captions.

    Args:
        teacher: The teacher's pipeline.
        data: The images whose captions are drawn.
        size: Side of the images in pixels.
        teacher_steps: N.
        segments: K.
        guidance: ``guidance_scale`` and ``guidance_rescale`` of the teacher.
    """

    def __init__(
        self,
        teacher: StableDiffusionPipeline,
        data: CaptionedImages,
        size: int,
        teacher_steps: int,
        segments: int,
        guidance: dict[str, float],
    ):
        self.prompts, self.steps = [row.prompt for row in data.rows], segments
        unet, side = teacher.unet.config, size // teacher.vae_scale_factor
        shape = (len(data), unet.in_channels, side, side)
        self.noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.ends = self._ends(teacher, teacher_steps, **guidance)
        self.teacher_distance = self._distance(self._ends(teacher, segments, **guidance))

    @torch.no_grad()
    def _ends(self, pipeline: StableDiffusionPipeline, steps: int, **call: float) -> Tensor:
        """Return the clean latents to which the stock pipeline comes from each noise."""
        parts, kind = [], {"output_type": "latent", "num_inference_steps": steps}
        for first in range(0, len(self.prompts), 64):
            noise = self.noise[first : first + 64].to(pipeline.device)
            made = pipeline(self.prompts[first : first + 64], latents=noise, **kind, **call)
            parts.append(made.images.float().cpu())
        return torch.cat(parts)

    def _distance(self, ends: Tensor) -> float:
        return (ends - self.ends).square().mean().sqrt().item()

    def __call__(self, student: StableDiffusionPipeline) -> dict[str, float]:
        """Return the root mean square difference in the latents; for scale, the teacher's own in as few steps too."""
        found = self._distance(self._ends(student, self.steps, guidance_scale=1.0))
        return {"held_out_distance": found, "teacher_distance": self.teacher_distance}
