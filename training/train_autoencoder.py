"""Trains the autoencoder of a small latent diffusion model, beginning with a trained one or from scratch.

    accelerate launch training/train_autoencoder.py --config training/recipes/emoji-autoencoder.yaml

An autoencoder that is given by ``init`` keeps what it knows: where it has fewer latent channels, new ones are added to
its 1x1 convolutions and to the convolutions beside them. The average of the weights is what is measured and saved, with
its latents normalised to zero mean and unit variance, as a stock ``AutoencoderKL``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from autoencoder import AutoencoderLoss, inflated, make_autoencoder, mean_psnr, normalise_latents, pixels, quicken
from diffusers import AutoencoderKL
from muon import Muon
from torch import Tensor, nn

from clip_guidance.data import CaptionedPictures
from clip_guidance.ema import averaged
from clip_guidance.pipeline import load_pipeline
from clip_guidance.trainer import Plan, SampleOrder, fit, make_accelerator, parse_settings, save_settings


@dataclass(frozen=True)
class Settings:
    """Settings of one run; the defaults are a small model for 64x64 images."""

    data: str  # captioned images: a table, folder, tars or a data set of the Hub; see clip_guidance.reading
    output: str  # folder for checkpoints, and in its folder "final" the finished autoencoder
    init: str | None = None  # pipeline whose autoencoder to go on from, a folder or a name
    validation: str | None = None  # captioned images on which its PSNR is measured
    validation_count: int = 128  # how many of them are measured on the way; at the end it is all
    size: int = 64  # side of the images in pixels
    channels: list[int] = field(default_factory=lambda: [24, 48, 96])  # all but the last halve the side; without init
    latent_channels: int = 8
    steps: int = 3000
    batch_size: int = 16
    learning_rate: float = 3e-4
    kl_weight: float = 1e-6
    edge_weight: float = 0.5  # of the error of differences between neighbouring pixels
    decibel_weight: float = 0.05  # of the images' own log(MSE)
    noise: float = 0.0  # standard deviation of noise on the latents
    weight_decay: float = 0.0
    ema_decay: float = 0.995
    warmup: float = 100  # steps, or below 1 the share of all steps
    max_grad_norm: float = 1.0
    seed: int = 0
    log_every: int = 20
    save_every: int = 100
    evaluate_every: int = 200


def first_autoencoder(settings: Settings, data: CaptionedPictures, device: torch.device) -> AutoencoderKL:
    """The one that training begins with."""
    torch.manual_seed(settings.seed)
    if settings.init is None:
        return make_autoencoder(settings.channels, settings.latent_channels, settings.size).to(device)
    known = load_pipeline(settings.init).vae
    vae = inflated(known, settings.latent_channels).to(device)
    normalise_latents(vae.eval(), data, device, 256)  # new channels at the scale of the known ones
    quicken(vae, known.config.latent_channels)
    return vae.train()


def train(
    settings: Settings, data: CaptionedPictures, accelerator: Accelerator, unseen: CaptionedPictures | None = None
) -> AutoencoderKL:
    """Trains on ``data`` up to ``settings.steps``, from the newest checkpoint if there is one.

    Returns:
        The average of the weights, with normalised latents.
    """
    vae = first_autoencoder(settings, data, accelerator.device).to(memory_format=torch.channels_last)
    weights = (settings.kl_weight, settings.edge_weight, settings.decibel_weight, settings.noise)
    model = AutoencoderLoss(vae, *weights)
    ema = averaged(model, settings.ema_decay)
    ema.eval()
    order = SampleOrder(len(data), settings.batch_size, settings.seed, accelerator)

    def loss(model: nn.Module, step: int) -> dict[str, Tensor]:
        x = pixels(data.pictures[order(step)], accelerator.device)
        return model(x.flip(-1) if step % 2 else x)

    def after_step(done: int) -> dict[str, float]:
        if unseen is None or done % settings.evaluate_every:
            return {}
        images = unseen.pictures[: settings.validation_count]
        return {"mean_psnr": mean_psnr(ema.module.vae, images, accelerator.device)}

    plan = Plan(
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        log_every=settings.log_every,
        save_every=settings.save_every,
        batch_size=order.global_batch_size,
    )
    options = {"phase": "autoencoder", "ema": ema, "after_step": after_step, "make_optimizer": Muon}
    fit(accelerator, model, loss, plan, Path(settings.output), **options)
    final = ema.module.vae
    normalise_latents(final, data, accelerator.device)
    return final


def main(settings: Settings) -> None:
    accelerator = make_accelerator()
    data = CaptionedPictures.load(settings.data, settings.size)
    unseen = CaptionedPictures.load(settings.validation, settings.size) if settings.validation else None
    accelerator.print(f"{len(data)} images, {len(data.skipped)} left out")
    save_settings(settings, Path(settings.output) / "settings.json")
    vae = train(settings, data, accelerator, unseen)
    if accelerator.is_main_process:
        vae.to(memory_format=torch.contiguous_format).half().save_pretrained(Path(settings.output) / "final")
    if unseen is not None:
        error = mean_psnr(vae.float(), unseen.pictures, accelerator.device)
        accelerator.print(f"mean PSNR {error:.2f} dB on {len(unseen)} images of {settings.validation}")


if __name__ == "__main__":
    main(parse_settings(Settings))
