"""Compare what autoencoders keep of held-out images, their latents, the cost of decoding.

    python training/compare_autoencoders.py --autoencoders emoji runs/emoji-autoencoder/final \
        --data ../shared/data/emoji64-val.parquet --output sheet.png

The program prints PSNRs, the mean and standard deviation of each latent channel, and times, two lines per autoencoder.
In the sheet, every image has beside it what each autoencoder makes of it, all of them enlarged.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from clip_guidance.data.dataset import CaptionedImages
from clip_guidance.training.diffusion.autoencoder import decibels, encode, load_autoencoder, pixels, squared_errors
from clip_guidance.training.settings import parse_settings

GAP = 2  # white pixels between images, before they are enlarged


@dataclass(frozen=True)
class Settings:
    """Settings of one comparison."""

    autoencoders: list[str]  # folders of autoencoders, or folders or names of pipelines that have one
    data: str  # captioned images on which they are measured
    output: str | None = None  # image file for the sheet; without it none is drawn
    size: int = 64  # side of the square images, in pixels
    count: int = 32  # images in the sheet, drawn at random from data
    columns: int = 4  # groups side by side: an image and what each autoencoder makes of it
    zoom: int = 2  # how many times the sheet is enlarged
    seed: int = 0  # of the draw of images for the sheet


def decoding_seconds(vae: AutoencoderKL, latents: Tensor, repeats: int = 12) -> float:
    """Measure the processor time of decoding with its gradient: the least of several."""
    times = []
    for _ in range(repeats):
        leaf = latents.clone().requires_grad_()
        start = time.process_time()
        vae.decode(leaf).sample.sum().backward()
        times.append(time.process_time() - start)
    return min(times)


@torch.no_grad()
def reconstructions(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode and decode uint8 images (N, 3, H, W); the result has the same type and shape."""
    decoded = vae.decode(vae.encode(pixels(images, torch.device("cpu"))).latent_dist.mean).sample
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def sheet_of(versions: list[Tensor], columns: int, zoom: int) -> Image.Image:
    """Draw a group per image, in all its versions; each version is a uint8 tensor (N, 3, H, W)."""
    count, _, height, width = versions[0].shape
    group = len(versions) * (width + GAP) + 2 * GAP
    sheet = Image.new("RGB", (columns * group, -(-count // columns) * (height + GAP)), "white")
    for number in range(count):
        row, column = divmod(number, columns)
        for place, version in enumerate(versions):
            image = Image.fromarray(version[number].permute(1, 2, 0).contiguous().numpy())
            sheet.paste(image, (column * group + place * (width + GAP), row * (height + GAP)))
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)


def main(settings: Settings) -> None:
    data = CaptionedImages.load(settings.data, settings.size)
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(settings.seed))[: settings.count]
    versions, device = [data.images[chosen]], torch.device("cpu")
    for name in settings.autoencoders:
        vae = load_autoencoder(name)
        errors, latents = squared_errors(vae, data.images, device), encode(vae, data.images, device)
        print(
            f"{name}: mean PSNR {decibels(errors).mean():.2f} dB, pooled PSNR {decibels(errors.mean()):.2f} dB, "
            f"decoding with its gradient {1e3 * decoding_seconds(vae, latents[:1]):.1f} ms"
        )
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        print("  latents: mean", *(f"{value:+.3f}" for value in mean), "std", *(f"{value:.3f}" for value in std))
        versions.append(reconstructions(vae, data.images[chosen]))
    if settings.output:
        sheet_of(versions, settings.columns, settings.zoom).save(settings.output)


if __name__ == "__main__":
    main(parse_settings(Settings))
