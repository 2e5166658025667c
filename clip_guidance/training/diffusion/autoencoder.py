"""Make and measure a small convolutional autoencoder of unit variance latents.

It is that of Rombach et al. 2022 (arXiv:2112.10752, section 3.1) without attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from clip_guidance.clip.hub import ModelError
from clip_guidance.data.dataset import CaptionedImages
from clip_guidance.generation.pipelines import load_pipeline
from clip_guidance.guidance.modes.noisy import latents_of


def make_autoencoder(channels: Sequence[int], latent_channels: int, size: int) -> AutoencoderKL:
    """Make an autoencoder without attention: 3 levels make 16x16 latents of 64x64 images."""
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


def load_autoencoder(name: str) -> AutoencoderKL:
    """Load an autoencoder from its own folder, else from a pipeline, in float32 and frozen.

    Raises:
        ModelError: There is no such folder or pipeline, or the pipeline has no autoencoder.
    """
    if (Path(name) / "diffusion_pytorch_model.safetensors").is_file():
        vae = AutoencoderKL.from_pretrained(name, use_safetensors=True)
    else:
        pipeline = load_pipeline(name)
        vae = getattr(pipeline, "vae", None)
        if vae is None:
            raise ModelError(f"{name}: expected an autoencoder or a pipeline with one, got {type(pipeline).__name__}")
    return vae.float().eval().requires_grad_(False)


def pixels(images: Tensor, device: torch.device) -> Tensor:
    """Convert uint8 (B, 3, H, W) to float in [-1, 1]."""
    return images.to(device, torch.float32, memory_format=torch.channels_last) / 127.5 - 1


def inflated(vae: AutoencoderKL, latent_channels: int) -> AutoencoderKL:
    """Give a trained autoencoder more latent channels.

    The channels that it had keep their weights and meaning. The new ones are random features of the encoder with nearly
    no noise, and the decoder's kernels for them are a tenth of fresh ones.

    Args:
        vae: The autoencoder, as :func:`make_autoencoder` makes it; left as it is, but for being in float32.
        latent_channels: How many the result has; as many as before makes a copy.

    Raises:
        ValueError: The autoencoder has more channels already.
    """
    known, config = vae.config.latent_channels, vae.config
    if latent_channels < known:
        raise ValueError(f"latent_channels: expected at least the {known} of the autoencoder, got {latent_channels}")
    wide = make_autoencoder(config.block_out_channels, latent_channels, config.sample_size)
    fresh, old = wide.state_dict(), vae.float().state_dict()
    same = {name: value for name, value in old.items() if value.shape == fresh[name].shape}
    wide.load_state_dict(same, strict=False)
    if latent_channels == known:
        return wide
    kept = torch.cat([torch.arange(known), torch.arange(known) + latent_channels])  # means, then log-variances
    with torch.no_grad():
        last, first, quant, post = wide.encoder.conv_out, wide.decoder.conv_in, wide.quant_conv, wide.post_quant_conv
        nn.init.zeros_(last.weight[latent_channels:]), nn.init.constant_(last.bias[latent_channels:], -9.0)
        last.weight[kept], last.bias[kept] = old["encoder.conv_out.weight"], old["encoder.conv_out.bias"]
        first.weight *= 0.1
        first.weight[:, :known], first.bias[:] = old["decoder.conv_in.weight"], old["decoder.conv_in.bias"]
        for conv, name, places in ((quant, "quant_conv", kept), (post, "post_quant_conv", torch.arange(known))):
            conv.weight[:] = torch.eye(len(conv.weight))[:, :, None, None]
            conv.bias.zero_()
            conv.weight[places[:, None], places], conv.bias[places] = old[f"{name}.weight"], old[f"{name}.bias"]
    return wide


@torch.no_grad()
def quicken(vae: AutoencoderKL, known: int, gain: float = 16.0) -> None:
    """Let the decoder learn faster from the new latent channels; what it decodes stays the same.

    ``post_quant_conv`` multiplies the channels by ``gain`` before they reach ``decoder.conv_in``, whose kernels for
    them are divided by as much. Steps of Muon and AdamW have one size whatever the gradient's, so that a step then
    changes what the channels contribute ``gain`` times more. Kernels that begin near zero would otherwise take
    thousands of steps to grow.

    Args:
        vae: The autoencoder; changed in place.
        known: How many channels it had before; those from this number on are new.
        gain: How much faster the new channels are learnt from.
    """
    post, first = vae.post_quant_conv, vae.decoder.conv_in
    factors = gain / post.weight[known:, known:, 0, 0].diag()
    post.weight[known:] *= factors[:, None, None, None]
    post.bias[known:] *= factors
    first.weight[:, known:] /= factors[:, None, None]


def differences(x: Tensor) -> Tensor:
    """Subtract each pixel from its neighbours to the right and below.

    Args:
        x: Images of shape (B, C, H, W).

    Returns:
        Differences of shape (B, 2C, H - 1, W - 1): first those to the right, then those below.
    """
    here = x[..., :-1, :-1]
    return torch.cat([x[..., :-1, 1:] - here, x[..., 1:, :-1] - here], 1)


class AutoencoderLoss(nn.Module):
    """Reconstruction error plus a small Kullback-Leibler term, per latent.

    L1 alone gives up rare colours (green becomes brown); the squared error does not let it.

    Args:
        vae: The autoencoder that is trained.
        kl_weight: Of the Kullback-Leibler term.
        edge_weight: Of the L1 error of the differences between neighbouring pixels, which a blurred edge gets wrong
            twice. The default, 0, leaves the term out.
        decibel_weight: Of the mean of the images' own log(MSE), which is their mean PSNR up to a factor. The plain
            squared error is mostly that of the few images with much detail; this term lets every image improve by the
            same share. The default, 0, leaves the term out.
        noise: Standard deviation of noise that is added to the latents beside the posterior's own; the latents'
            variance should be near one.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        kl_weight: float,
        edge_weight: float = 0.0,
        decibel_weight: float = 0.0,
        noise: float = 0.0,
    ):
        super().__init__()
        self.vae, self.kl_weight = vae, kl_weight
        self.edge_weight, self.decibel_weight, self.noise = edge_weight, decibel_weight, noise

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        posterior = self.vae.encode(x).latent_dist
        latents = posterior.sample()
        if self.noise:
            latents = latents + self.noise * torch.randn_like(latents)
        reconstruction = self.vae.decode(latents).sample.float()
        squares = (reconstruction - x).square().mean((1, 2, 3))
        l1, mse = F.l1_loss(reconstruction, x), squares.mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = l1 + 2 * mse + self.kl_weight * kl
        values = {"l1": l1, "mse": mse, "kl": kl}
        if self.edge_weight:
            values["edges"] = F.l1_loss(differences(reconstruction), differences(x))
            loss = loss + self.edge_weight * values["edges"]
        if self.decibel_weight:
            values["log_mse"] = (squares + 1e-5).log().mean()
            loss = loss + self.decibel_weight * values["log_mse"]
        return {"loss": loss} | {name: value.detach() for name, value in values.items()}


def encode(vae: AutoencoderKL, images: Tensor, device: torch.device, batch_size: int = 64) -> Tensor:
    """Encode uint8 images (N, 3, H, W) into the means of their latents (N, C, h, w), as a scheduler sees them."""
    return torch.cat([latents_of(vae, pixels(part, device)).cpu() for part in images.split(batch_size)])


@torch.no_grad()
def squared_errors(vae: AutoencoderKL, images: Tensor, device: torch.device, batch_size: int = 64) -> Tensor:
    """Measure the mean squared error (N,), of values in [0, 1], on uint8 images (N, 3, H, W)."""
    errors = []
    for part in images.split(batch_size):
        reconstruction = vae.decode(vae.encode(pixels(part, device)).latent_dist.mean).sample.clamp(-1, 1)
        errors.append(((reconstruction - pixels(part, device)) / 2).square().mean((1, 2, 3)).cpu())
    return torch.cat(errors)


def decibels(errors: Tensor) -> Tensor:
    """Convert mean squared errors of values in [0, 1] to PSNRs in decibels, 10 log10 1/MSE.

    The ratios end at 60 dB: that of an image that comes back exactly would be infinite, and so would every mean.
    """
    return -10 * errors.double().clamp(min=1e-6).log10()


def psnr(vae: AutoencoderKL, images: Tensor, device: torch.device, batch_size: int = 64) -> float:
    """Measure the PSNR in decibels of all pixels of uint8 images (N, 3, H, W) together."""
    return decibels(squared_errors(vae, images, device, batch_size).double().mean()).item()


def mean_psnr(vae: AutoencoderKL, images: Tensor, device: torch.device, batch_size: int = 64) -> float:
    """Measure the mean of the images' own PSNRs in decibels; :func:`psnr` pools all their pixels."""
    return decibels(squared_errors(vae, images, device, batch_size)).mean().item()


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
