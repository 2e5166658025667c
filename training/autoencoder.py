"""A small convolutional autoencoder of unit variance latents (Rombach et al. 2022, arXiv:2112.10752, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from clip_guidance.data.dataset import CaptionedImages


def make_autoencoder(channels: Sequence[int], latent_channels: int, size: int) -> AutoencoderKL:
    """Make a convolutional autoencoder without attention: 3 levels make 16x16 latents of 64x64 images."""
    levels = len(channels)
    return AutoencoderKL(
        block_out_channels=tuple(channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=size,
        scaling_factor=1.0,
    )


def pixels(images: Tensor, device: torch.device) -> Tensor:
    """uint8 (B, 3, H, W) to float in [-1, 1]."""
    return images.to(device, torch.float32, memory_format=torch.channels_last) / 127.5 - 1


class AutoencoderLoss(nn.Module):
    """Reconstruction error plus a small Kullback-Leibler term, per latent.

    L1 alone gives up rare colours (green becomes brown); the squared error does not let it.
    """

    def __init__(self, vae: AutoencoderKL, kl_weight: float):
        super().__init__()
        self.vae, self.kl_weight = vae, kl_weight

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        posterior = self.vae.encode(x).latent_dist
        reconstruction = self.vae.decode(posterior.sample()).sample.float()
        l1, mse = F.l1_loss(reconstruction, x), F.mse_loss(reconstruction, x)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return {"loss": l1 + 2 * mse + self.kl_weight * kl, "l1": l1.detach(), "mse": mse.detach(), "kl": kl.detach()}


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, device: torch.device, batch_size: int = 64) -> Tensor:
    """Latent means (N, C, h, w) of uint8 images (N, 3, H, W)."""
    parts = [vae.encode(pixels(part, device)).latent_dist.mean.cpu() for part in images.split(batch_size)]
    return torch.cat(parts)


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Tensor, device: torch.device, batch_size: int = 64) -> float:
    """Peak signal-to-noise ratio in decibels of uint8 images (N, 3, H, W) after the autoencoder: 10 log10 1/MSE."""
    squares = 0.0
    for part in images.split(batch_size):
        reconstruction = vae.decode(vae.encode(pixels(part, device)).latent_dist.mean).sample.clamp(-1, 1)
        squares += ((reconstruction - pixels(part, device)) / 2).square().mean().item() * len(part)
    return -10 * math.log10(squares / len(images))


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, data: CaptionedImages, device: torch.device, count: int = 2048) -> None:
    """Give every latent channel zero mean, unit variance over the data, inside the weights.

    z' = (z - m) / s is folded into ``quant_conv`` (means by rows, log-variances by a shift of -2 log s) and its inverse
    into ``post_quant_conv``: a stock pipeline, which knows only a scaling factor, then needs none.
    """
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]
    latents = encode(vae, data.images[chosen], device)
    mean, std = latents.mean((0, 2, 3)).to(device), latents.std((0, 2, 3)).to(device)
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[channels:] -= 2 * std.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]
