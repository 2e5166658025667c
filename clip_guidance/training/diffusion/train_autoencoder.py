"""Train the autoencoder of a latent diffusion model: ``clip-guidance train autoencoder``.

An autoencoder that is given by ``init`` keeps what it has learnt: where it has fewer latent channels, new ones are
added to its 1x1 convolutions and to the convolutions beside them. The average of the weights is measured and saved as a
stock ``AutoencoderKL``, with latents that are normalised to zero mean and unit variance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor, nn

from clip_guidance.data.dataset import CaptionedImages
from clip_guidance.training.diffusion.autoencoder import (
    AutoencoderLoss,
    inflated,
    load_autoencoder,
    make_autoencoder,
    mean_psnr,
    normalise_latents,
    pixels,
    quicken,
)
from clip_guidance.training.diffusion.checks import check_settings
from clip_guidance.training.ema import make_ema_model
from clip_guidance.training.launch import make_accelerator
from clip_guidance.training.muon import Muon
from clip_guidance.training.order import SampleOrder
from clip_guidance.training.output import errors_as_sentences, locked_output
from clip_guidance.training.settings import save_settings
from clip_guidance.training.trainer import Plan, fit


@dataclass(frozen=True)
class Settings:
    """Settings of one run; the defaults are a small model for 64x64 images."""

    data: str  # captioned images: a table, folder, tars or a data set of the Hub; see clip_guidance.data
    output: str  # folder for checkpoints, and in its folder "final" the finished autoencoder
    init: str | None = None  # autoencoder to continue from: its folder, or folder or name of a pipeline that has one
    validation: str | None = None  # captioned images on which the PSNR is measured
    validation_count: int = 128  # how many of them are measured on the way; at the end all are
    size: int = 64  # side of the square images, in pixels
    channels: list[int] = field(default_factory=lambda: [24, 48, 96])  # by level; not with init
    latent_channels: int = 8  # channels of the latents; at least those of init
    steps: int = 3000  # optimizer steps
    batch_size: int = 16  # images per process and step
    learning_rate: float = 3e-4  # of Muon and AdamW, at the end of the warm-up
    kl_weight: float = 1e-6  # of the Kullback-Leibler term in the loss
    edge_weight: float = 0.5  # of the error of the differences between neighbouring pixels
    decibel_weight: float = 0.05  # of the mean of the images' own log(MSE)
    noise: float = 0.0  # standard deviation of the noise that is added to the latents
    weight_decay: float = 0.0  # of Muon and AdamW, on matrices and kernels
    ema_decay: float = 0.995  # save the average of the weights over about 1/(1 - ema_decay) steps
    warmup: float = 100  # steps, or below 1 the share of all steps, in which the learning rate rises
    max_grad_norm: float = 1.0  # longer gradients are scaled down to this norm
    seed: int = 0  # of the weights, the order of the data and every random draw
    log_every: int = 20  # steps from one row of the log to the next
    save_every: int = 100  # steps from one checkpoint to the next
    evaluate_every: int = 200  # steps from one measurement on the validation images to the next


def first_autoencoder(settings: Settings, data: CaptionedImages, device: torch.device) -> AutoencoderKL:
    """Make the autoencoder that training begins with, or continue from that of ``init``."""
    torch.manual_seed(settings.seed)
    if settings.init is None:
        return make_autoencoder(settings.channels, settings.latent_channels, settings.size).to(device)
    known = load_autoencoder(settings.init)
    vae = inflated(known, settings.latent_channels).to(device)
    normalise_latents(vae.eval(), data, device, 256)  # new channels at the scale of the known ones
    quicken(vae, known.config.latent_channels)
    return vae.train()


def train(
    settings: Settings, data: CaptionedImages, accelerator: Accelerator, unseen: CaptionedImages | None = None
) -> AutoencoderKL:
    """Train on the data up to ``settings.steps``, from the newest checkpoint if there is one.

    Args:
        unseen: Images on which the PSNR is measured during training.

    Returns:
        The autoencoder with the average of the weights, with normalised latents.
    """
    vae = first_autoencoder(settings, data, accelerator.device).to(memory_format=torch.channels_last)
    weights = (settings.kl_weight, settings.edge_weight, settings.decibel_weight, settings.noise)
    model = AutoencoderLoss(vae, *weights)
    ema_model = make_ema_model(model, settings.ema_decay)
    ema_model.eval()
    order = SampleOrder(len(data), settings.batch_size, settings.seed, accelerator)

    def loss(model: nn.Module, step: int) -> dict[str, Tensor]:
        x = pixels(data.images[order(step)], accelerator.device)
        return model(x.flip(-1) if step % 2 else x)

    def after_step(done: int) -> dict[str, float]:
        if unseen is None or done % settings.evaluate_every:
            return {}
        images = unseen.images[: settings.validation_count]
        return {"mean_psnr": mean_psnr(ema_model.module.vae, images, accelerator.device)}

    plan = Plan.of(settings, settings.steps, settings.learning_rate, order.global_batch_size)
    fit(
        accelerator, model, loss, plan, Path(settings.output), phase="autoencoder", ema_model=ema_model,
        after_step=after_step, make_optimizer=Muon,
    )  # fmt: skip
    final = ema_model.module.vae
    normalise_latents(final, data, accelerator.device)
    return final


def main(settings: Settings) -> None:
    """Train, and save the autoencoder in ``output/final``.

    Raises:
        SystemExit: A setting is out of range, or the data, a model, the output or the launch cannot be used; the
            message says so.
    """
    check_settings(settings)
    accelerator = make_accelerator()
    with errors_as_sentences(), locked_output(settings.output, accelerator):
        data = CaptionedImages.load(settings.data, settings.size)
        unseen = CaptionedImages.load(settings.validation, settings.size) if settings.validation else None
        accelerator.print(f"{len(data)} images, {len(data.skipped)} left out")
        save_settings(settings, Path(settings.output) / "settings.json")
        vae = train(settings, data, accelerator, unseen)
        if accelerator.is_main_process:
            vae.to(memory_format=torch.contiguous_format).half().save_pretrained(Path(settings.output) / "final")
        if unseen is not None:
            error = mean_psnr(vae.float(), unseen.images, accelerator.device)
            accelerator.print(f"mean PSNR {error:.2f} dB on {len(unseen)} images of {settings.validation}")
