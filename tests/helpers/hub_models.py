"""Tiny random models in folders that are called as real ones on the hub, so that a card's snippet finds them there."""

from pathlib import Path

import diffusers as d
import torch
from transformers import T5Config, T5EncoderModel

from helpers.factories import save_tiny_clip, save_tiny_pipeline
from helpers.pipelines import flux, parts, sd3, unet_sdxl

GUIDE, JUDGE = "openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14"
SD, SDXL = "stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"
SD3, FLUX = "stabilityai/stable-diffusion-3-medium-diffusers", "black-forest-labs/FLUX.1-schnell"


def save_models(folder: Path) -> None:
    """Write all of them; the pipelines encode prompts, of images of 16 x 16."""
    for seed, name in enumerate((GUIDE, JUDGE)):
        save_tiny_clip(folder / name, seed)
    save_tiny_pipeline(folder / SD, folder / GUIDE)
    for name, make in {SDXL: sdxl, SD3: stable_diffusion3, FLUX: flux1}.items():
        torch.manual_seed(0)
        make().save_pretrained(folder / name)


def sdxl() -> d.StableDiffusionXLPipeline:
    return parts.build(
        d.StableDiffusionXLPipeline,
        **encoders(False, True),
        unet=parts.awaken(parts.unet(**{**unet_sdxl.CONFIG, "cross_attention_dim": 2 * parts.WIDTH})),
        vae=parts.vae(),
        scheduler=parts.scheduler(d.EulerDiscreteScheduler, steps_offset=1),
    )


def stable_diffusion3() -> d.StableDiffusion3Pipeline:
    config = {**sd3.CONFIG, "joint_attention_dim": 2 * parts.WIDTH, "pooled_projection_dim": 2 * parts.WIDTH}
    return parts.build(
        d.StableDiffusion3Pipeline,
        **encoders(True, True),
        text_encoder_3=t5(2 * parts.WIDTH),
        tokenizer_3=parts.clip_tokenizer(),
        transformer=parts.awaken(d.SD3Transformer2DModel(**config)),
        vae=parts.vae(shift_factor=0.1),
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux1() -> d.FluxPipeline:
    pipe, _ = flux.flux(d.FluxPipeline)
    pipe.register_modules(**{**encoders(False, False), "text_encoder_2": t5(parts.WIDTH)})
    return pipe


def t5(width: int) -> T5EncoderModel:
    sizes = {"d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=54, d_model=width, **sizes)).eval()


def encoders(*projections: bool) -> dict:
    """Two text encoders with their tokenizers."""
    first, second = (parts.clip_text(projection=each) for each in projections)
    tokenizers = {"tokenizer": parts.clip_tokenizer(), "tokenizer_2": parts.clip_tokenizer()}
    return {"text_encoder": first, "text_encoder_2": second, **tokenizers}


def images_of(pipe, **call):
    """Images (B, 3, H, W) of two steps."""
    parts.quiet(pipe)
    call = {"height": parts.SIDE, "width": parts.SIDE, **call}  # Flux's own are large
    return pipe(num_inference_steps=2, generator=parts.generator(), output_type="pt", **call).images
