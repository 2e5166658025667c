"""Stable Diffusion 3, its ControlNets and its perturbed-attention forms; texts are given as embeddings."""

import diffusers as d
import torch
from helpers.pipelines import parts
from helpers.pipelines.parts import awaken, build, call, image, mask, texts

CONFIG = {
    "sample_size": 8,
    "in_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 8,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 8,
    "out_channels": 4,
    "pos_embed_max_size": 16,
}


def sd3(cls, controlnet=None, channels=4, **inputs):
    torch.manual_seed(0)
    config = {**CONFIG, "in_channels": channels, "out_channels": channels}
    held = {}
    if controlnet is not None:
        held["controlnet"] = awaken(d.SD3ControlNetModel(**config, **controlnet))
    pipe = build(
        cls,
        transformer=awaken(d.SD3Transformer2DModel(**config)),
        vae=parts.vae(channels=channels, shift_factor=0.1),
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **held,
    )
    return pipe, call(**texts(pooled=8), **inputs)


def again(**inputs):
    return {"image": image(), "strength": 0.8, **inputs}


PIPELINES = {
    "StableDiffusion3Pipeline": lambda: sd3(d.StableDiffusion3Pipeline),
    "StableDiffusion3Img2ImgPipeline": lambda: sd3(d.StableDiffusion3Img2ImgPipeline, **again()),
    "StableDiffusion3InpaintPipeline": lambda: sd3(
        d.StableDiffusion3InpaintPipeline, channels=16, **again(mask_image=mask())
    ),
    "StableDiffusion3ControlNetPipeline": lambda: sd3(
        d.StableDiffusion3ControlNetPipeline, controlnet={}, control_image=image()
    ),
    "StableDiffusion3ControlNetInpaintingPipeline": lambda: sd3(
        d.StableDiffusion3ControlNetInpaintingPipeline,
        controlnet={"extra_conditioning_channels": 1},
        control_image=image(),
        control_mask=mask(),
    ),
    "StableDiffusion3PAGPipeline": lambda: sd3(d.StableDiffusion3PAGPipeline),
    "StableDiffusion3PAGImg2ImgPipeline": lambda: sd3(d.StableDiffusion3PAGImg2ImgPipeline, **again()),
}
