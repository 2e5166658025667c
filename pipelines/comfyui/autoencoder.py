"""The VAE of a graph, as the engine reads autoencoders: differentiable, in the place of the sample."""

import copy

import torch
from torch import nn


class Autoencoder(nn.Module):
    """Decode latents with gradients by a copy of a VAE's weights.

    A copy, since ComfyUI loads weights in inference mode, which autograd refuses, and moves them between devices
    while a model samples.

    Args:
        vae: ComfyUI's VAE.
        device: Where the sampler's latents are.
    """

    def __init__(self, vae, device: torch.device) -> None:
        super().__init__()
        self.network = copy.deepcopy(vae.first_stage_model).to(device, vae.vae_dtype).requires_grad_(False)
        # From what the network makes to [0, 1]: read off at 0 and 1/2, where ComfyUI's function does not clip.
        at_zero, at_half = vae.process_output(torch.tensor([0.0, 0.5])).tolist()
        self.slope, self.offset = 2 * (at_half - at_zero), at_zero
        self._process_input = vae.process_input

    def decode(self, latents: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        """Return pixels (B, 3, H, W) in [-1, 1], not clipped."""
        return (2 * (self.slope * self.network.decode(latents).float() + self.offset) - 1,)

    def encode(self, pixels: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        """Return the latents (B, C, h, w) of pixels (B, 3, H, W) in [-1, 1]."""
        return (self.network.encode(self._process_input((pixels + 1) / 2)),)


def check_latents(vae, latent_format) -> None:
    """Refuse a VAE of another latent space than the model's, as far as it can be told.

    Raises:
        ValueError: The latents are no images, or of another number of channels, or of another family's TAESD.
    """
    name = type(latent_format).__name__
    dims, channels = latent_format.latent_dimensions, latent_format.latent_channels
    if dims != 2 or vae.latent_dim != 2:
        raise ValueError(
            f"CLIP guidance reads images, whose latents have 2 dimensions; those of the model ({name}) have {dims}, "
            f"those of the VAE {vae.latent_dim}"
        )
    if vae.latent_channels != channels:
        raise ValueError(
            f"the VAE decodes latents of {vae.latent_channels} channels, those of the model ({name}) have {channels}: "
            "connect the VAE of the model's family, or its TAESD"
        )
    scale = float(getattr(vae.first_stage_model, "vae_scale", 1.0))  # of a TAESD
    expected = latent_format.scale_factor
    if scale != 1.0 and not hasattr(latent_format, "latents_mean") and abs(scale - expected) > 1e-3 * expected:
        raise ValueError(
            f"this TAESD is of a model whose latents are scaled by {scale:.5f}; those of the model ({name}) by "
            f"{expected:.5f}: connect the TAESD of the model's family"
        )
