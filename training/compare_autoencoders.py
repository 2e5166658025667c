"""Autoencoders side by side: what they keep of held-out images, the scale of their latents, the cost of their decoders.

    python training/compare_autoencoders.py --autoencoders emoji runs/emoji-autoencoder/final \
        --data ../shared/data/emoji64-val.parquet --output sheet.png

Prints a row for each. In the sheet, every image has beside it what each autoencoder makes of it, all of them enlarged.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from autoencoder import decibels, encode, pixels, squared_errors
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from clip_guidance.data import CaptionedPictures
from clip_guidance.pipeline import load_pipeline
from clip_guidance.trainer import parse_settings

GAP = 2  # white pixels between images, before they are enlarged


@dataclass(frozen=True)
class Settings:
    """Settings of one comparison."""

    autoencoders: list[str]  # folders of autoencoders, or folders or names of pipelines that have one
    data: str  # captioned images
    output: str | None = None  # the sheet
    size: int = 64  # side of the images in pixels
    count: int = 32  # images in the sheet
    columns: int = 4  # of groups: an image and what becomes of it
    zoom: int = 2
    seed: int = 0


def load_autoencoder(name: str) -> AutoencoderKL:
    """From a folder of its own, else from a pipeline; in float32 and ready to be measured."""
    if (Path(name) / "diffusion_pytorch_model.safetensors").is_file():
        vae = AutoencoderKL.from_pretrained(name, use_safetensors=True)
    else:
        vae = load_pipeline(name).vae
    return vae.float().eval().requires_grad_(False)


def decoding_seconds(vae: AutoencoderKL, latents: Tensor, repeats: int = 12) -> float:
    """Processor time of decoding these latents and differentiating it, as guidance does: the least of several."""
    times = []
    for _ in range(repeats):
        leaf = latents.clone().requires_grad_()
        start = time.process_time()
        vae.decode(leaf).sample.sum().backward()
        times.append(time.process_time() - start)
    return min(times)


@torch.no_grad()
def reconstructions(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """What the autoencoder makes of uint8 images (N, 3, H, W), as such."""
    decoded = vae.decode(vae.encode(pixels(images, torch.device("cpu"))).latent_dist.mean).sample
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def sheet_of(versions: list[Tensor], columns: int, zoom: int) -> Image.Image:
    """Groups of one image in all its versions, each a uint8 tensor (N, 3, H, W)."""
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
    data = CaptionedPictures.load(settings.data, settings.size)
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(settings.seed))[: settings.count]
    versions, device = [data.pictures[chosen]], torch.device("cpu")
    for name in settings.autoencoders:
        vae = load_autoencoder(name)
        errors, latents = squared_errors(vae, data.pictures, device), encode(vae, data.pictures, device)
        print(
            f"{name}: mean PSNR {decibels(errors).mean():.2f} dB, pooled PSNR {decibels(errors.mean()):.2f} dB, "
            f"decoding with its gradient {1e3 * decoding_seconds(vae, latents[:1]):.1f} ms"
        )
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        print("  latents: mean", *(f"{value:+.3f}" for value in mean), "std", *(f"{value:.3f}" for value in std))
        versions.append(reconstructions(vae, data.pictures[chosen]))
    if settings.output:
        sheet_of(versions, settings.columns, settings.zoom).save(settings.output)


if __name__ == "__main__":
    main(parse_settings(Settings))
