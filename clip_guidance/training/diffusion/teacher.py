"""A trained denoiser that teaches another one what a text means, at the noisy times where the text decides.

There hardly anything of the image is to be seen, and the velocity of one image and one noise is a poor witness of the
mean that a denoiser is to learn. A teacher's prediction is near that mean and has none of this variance (Hinton et al.
2015, arXiv:1503.02531). At the time t of T the target becomes

    v ← (1 − w) v + w v_teacher,    w = share · max(0, 2 t/T − 1):

at less noise than in the middle of the schedule, where details are drawn, the images alone teach.

The teacher may read another CLIP's texts, and know fewer latent channels: it teaches the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from clip_guidance.clip import ModelError


class Teacher:
    """A pipeline that predicts the velocities of another one's first latent channels.

    Args:
        pipeline: The teacher, left as it is.
        student: The pipeline whose UNet is trained; its schedule must be the teacher's.
        share: In [0, 1], the teacher's share of the target at the noisiest time.

    Raises:
        ModelError: The teacher has no UNet, predicts something else, or latents of another size, or has more channels
            or another schedule; says which.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, student: StableDiffusionPipeline, share: float = 1.0):
        _check(pipeline, student)
        device = student.vae.device
        self.unet, self.text_encoder = (part.to(device).eval() for part in (pipeline.unet, pipeline.text_encoder))
        self.tokenizer, self.share = pipeline.tokenizer, share
        self.steps: int = pipeline.scheduler.config.num_train_timesteps

    @torch.no_grad()
    def __call__(self, velocity: Tensor, x: Tensor, timesteps: Tensor, captions: Sequence[str]) -> Tensor:
        """Mix the teacher's prediction into the velocities.

        Args:
            velocity: What the images alone would teach, (B, C, h, w).
            x: The noisy latents (B, C, h, w).
            timesteps: Their times, int64 (B,).
            captions: Their B captions.
        """
        weights = self.share * (2 * timesteps.float() / self.steps - 1).clamp(min=0)
        taught = (weights > 0).nonzero().flatten()
        if not len(taught):
            return velocity
        known, target = self.unet.config.in_channels, velocity.clone()
        words = [captions[i] for i in taught.tolist()]
        ids = self.tokenizer(words, padding="max_length", truncation=True, return_tensors="pt").input_ids
        text = self.text_encoder(ids.to(x.device))[0]
        said = self.unet(x[taught, :known], timesteps[taught], text).sample.to(velocity.dtype)
        target[taught, :known] = torch.lerp(velocity[taught, :known], said, weights[taught, None, None, None])
        return target


def _check(teacher: StableDiffusionPipeline, student: StableDiffusionPipeline) -> None:
    if getattr(teacher, "unet", None) is None:
        raise ModelError(f"--teacher: expected a pipeline with a UNet, got {type(teacher).__name__}")
    found, wanted = teacher.unet.config, student.unet.config
    kind = teacher.scheduler.config.get("prediction_type")
    if kind != "v_prediction":
        said = kind or f"the scheduler {type(teacher.scheduler).__name__}"
        raise ModelError(f"--teacher: expected a model of v_prediction, got {said}")
    if found.in_channels > wanted.in_channels or found.sample_size != wanted.sample_size:
        shapes = [f"{config.in_channels}x{config.sample_size}x{config.sample_size}" for config in (found, wanted)]
        raise ModelError(f"--teacher: expected latents of at most {shapes[1]}, got {shapes[0]}")
    ours, theirs = student.scheduler.alphas_cumprod, teacher.scheduler.alphas_cumprod
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=1e-4, rtol=0):
        raise ModelError("--teacher: its schedule of noise is another one")
