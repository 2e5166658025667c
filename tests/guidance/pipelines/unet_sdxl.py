"""Stable Diffusion XL, and Kolors and DreamLite, which follow it; texts are given as embeddings."""

import inspect
from types import SimpleNamespace

import diffusers as d
import torch
from diffusers.utils import DummyObject
from pipelines.parts import awaken, build, embeds, mask, picture, pil_picture, texts

from pipelines import parts

CONFIG = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 2,
    "projection_class_embeddings_input_dim": parts.WIDTH + 6 * 2,
}
REFINER = {**CONFIG, "projection_class_embeddings_input_dim": parts.WIDTH + 5 * 2}  # its aesthetic score is one number
PLAYGROUND = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.9, 1.1, 1.2, 0.8]}


def sdxl(cls, config=None, scheduler=None, text=None, pieces=None, **inputs):
    """A pipeline with a UNet of ``config`` and other ``pieces``."""
    pipe = build(
        cls,
        unet=awaken(parts.unet(**{**CONFIG, **(config or {})})),
        vae=parts.vae(**PLAYGROUND),  # whose statistics some pipelines pass over
        scheduler=scheduler or parts.scheduler(d.EulerDiscreteScheduler, steps_offset=1),
        **(pieces or {}),
    )
    return pipe, parts.sized(cls, **(texts(pooled=parts.WIDTH) if text is None else text), **inputs)


def again(**inputs):
    return {"image": picture(), "strength": 0.8, **inputs}


def inpaint(**inputs):
    return again(mask_image=mask(), **inputs)


def control(**inputs):
    return {"control_image": picture(seed=4), **inputs}


def controlled(cls, config=None, **inputs):
    config = {**CONFIG, **(config or {})}
    return sdxl(cls, config, pieces={"controlnet": parts.controlnet(**{**CONFIG, "in_channels": 4})}, **inputs)


def union(cls, **inputs):
    net = parts.controlnet(
        d.ControlNetUnionModel,
        num_control_type=2,
        num_trans_channel=8,
        num_trans_head=2,
        num_trans_layer=1,
        num_proj_channel=8,
        **CONFIG,
    )
    return sdxl(cls, pieces={"controlnet": net}, **control(control_mode=[0]), **inputs)


PIPELINES = parts.seeded(
    {
        "StableDiffusionXLPipeline": lambda: sdxl(d.StableDiffusionXLPipeline),
        "StableDiffusionXLImg2ImgPipeline": lambda: sdxl(d.StableDiffusionXLImg2ImgPipeline, **again()),
        "StableDiffusionXLImg2ImgPipeline + refiner": lambda: sdxl(
            d.StableDiffusionXLImg2ImgPipeline,
            REFINER,
            pieces={"requires_aesthetics_score": True},
            image=embeds(1, 4, 8, 8),
            denoising_start=0.4,
        ),
        "StableDiffusionXLInpaintPipeline": lambda: sdxl(d.StableDiffusionXLInpaintPipeline, **inpaint()),
        "StableDiffusionXLInpaintPipeline + 9 channels": lambda: sdxl(
            d.StableDiffusionXLInpaintPipeline, {"in_channels": 9}, **inpaint()
        ),
        "StableDiffusionXLInstructPix2PixPipeline": lambda: sdxl(
            d.StableDiffusionXLInstructPix2PixPipeline, {"in_channels": 8}, image=picture()
        ),
        "StableDiffusionXLControlNetPipeline": lambda: controlled(
            d.StableDiffusionXLControlNetPipeline, image=picture()
        ),
        "StableDiffusionXLControlNetImg2ImgPipeline": lambda: controlled(
            d.StableDiffusionXLControlNetImg2ImgPipeline, **again(), **control()
        ),
        "StableDiffusionXLControlNetInpaintPipeline": lambda: controlled(
            d.StableDiffusionXLControlNetInpaintPipeline, **inpaint(), **control()
        ),
        "StableDiffusionXLControlNetUnionPipeline": lambda: union(d.StableDiffusionXLControlNetUnionPipeline),
        "StableDiffusionXLControlNetUnionImg2ImgPipeline": lambda: union(
            d.StableDiffusionXLControlNetUnionImg2ImgPipeline, **again()
        ),
        "StableDiffusionXLControlNetUnionInpaintPipeline": lambda: union(
            d.StableDiffusionXLControlNetUnionInpaintPipeline, **inpaint()
        ),
        "StableDiffusionXLPAGPipeline": lambda: sdxl(d.StableDiffusionXLPAGPipeline),
        "StableDiffusionXLPAGImg2ImgPipeline": lambda: sdxl(d.StableDiffusionXLPAGImg2ImgPipeline, **again()),
        "StableDiffusionXLPAGInpaintPipeline": lambda: sdxl(d.StableDiffusionXLPAGInpaintPipeline, **inpaint()),
        "StableDiffusionXLControlNetPAGPipeline": lambda: controlled(
            d.StableDiffusionXLControlNetPAGPipeline, image=picture()
        ),
        "StableDiffusionXLControlNetPAGImg2ImgPipeline": lambda: controlled(
            d.StableDiffusionXLControlNetPAGImg2ImgPipeline, **again(), **control()
        ),
    }
)
