"""A custom node for tests and screenshots: the packaged pipeline as a MODEL, a VAE and conditionings of ComfyUI.

It needs no checkpoint. ComfyUI imports it as a module of its custom nodes.
"""

from types import SimpleNamespace

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import torch
from torch import nn

import clip_guidance as cg

TINY = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1], "num_heads": 1,
    "channel_mult": [1], "transformer_depth": [0], "transformer_depth_middle": 0, "transformer_depth_output": [0] * 2,
    "context_dim": 16, "use_spatial_transformer": True, "legacy": False, "use_checkpoint": False,
    "dtype": torch.float32,
}  # fmt: skip


class Denoiser(nn.Module):
    """The UNet of diffusers, called as ComfyUI calls its own."""

    dtype = torch.float32

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, x, timesteps, context=None, **options):
        return self.unet(x, timesteps, context).sample


class FirstStage(nn.Module):
    """The autoencoder of diffusers, called as ComfyUI calls its own."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def decode(self, latents):
        return self.vae.decode(latents).sample

    def encode(self, pixels):
        return self.vae.encode(pixels).latent_dist.mode()


def image_vae(vae) -> SimpleNamespace:
    """What ComfyUI's graphs read of a VAE."""
    network = FirstStage(vae)

    def to_image(pixels):
        return (pixels / 2 + 0.5).clamp(0, 1)

    return SimpleNamespace(
        first_stage_model=network,
        vae_dtype=torch.float32,
        latent_channels=vae.config.latent_channels,
        latent_dim=2,
        upscale_ratio=4,
        process_output=to_image,
        process_input=lambda image: image * 2 - 1,
        decode=lambda latents: to_image(network.decode(latents)).movedim(1, -1),
    )


class Emoji:
    """Load the packaged pipeline, with two texts."""

    CATEGORY, FUNCTION = "clip_guidance", "load"
    RETURN_TYPES = ("MODEL", "VAE", "CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("model", "vae", "positive", "negative")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"prompt": ("STRING", {"multiline": True, "default": ""})}}

    def load(self, prompt):
        with torch.inference_mode(False):
            pipe = cg.load_pipeline("emoji")
        config = comfy.supported_models.SD15(TINY)
        config.unet_config, config.latent_format = dict(TINY), comfy.latent_formats.LatentFormat()
        config.latent_format.latent_channels = pipe.vae.config.latent_channels
        config.latent_format.scale_factor = pipe.vae.config.scaling_factor
        model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.V_PREDICTION)
        model.diffusion_model = Denoiser(pipe.unet)
        products = pipe.scheduler.alphas_cumprod
        model.model_sampling.set_sigmas((1 / products - 1).sqrt())
        cpu = torch.device("cpu")
        positive, negative = pipe.encode_prompt(prompt, cpu, 1, True)
        patcher = comfy.model_patcher.ModelPatcher(model.eval(), cpu, cpu)
        return patcher, image_vae(pipe.vae), [[positive, {}]], [[negative, {}]]


NODE_CLASS_MAPPINGS = {"TestEmoji": Emoji}
NODE_DISPLAY_NAME_MAPPINGS = {"TestEmoji": "The packaged model"}
