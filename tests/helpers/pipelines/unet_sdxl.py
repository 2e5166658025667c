"""Stable Diffusion XL, and Kolors and DreamLite, which follow it; texts are given as embeddings."""

import importlib

import diffusers as d
import torch
from helpers.pipelines import parts
from helpers.pipelines.parts import awaken, build, embeds, image, mask, pil_image, texts

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
    return {"image": image(), "strength": 0.8, **inputs}


def inpaint(**inputs):
    return again(mask_image=mask(), **inputs)


def control(**inputs):
    return {"control_image": image(seed=4), **inputs}


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


def controlnet_xs():
    net = {"controlnet": parts.controlnet_xs()}
    return sdxl(d.StableDiffusionXLControlNetXSPipeline, {"layers_per_block": 2}, pieces=net, image=image())


def with_ip_adapter():
    pipe, inputs = sdxl(d.StableDiffusionXLPipeline)
    return pipe, inputs | parts.ip_adapter(pipe.unet)


def ledits():
    """It edits the image that it was made to invert before."""
    pieces = {"text_encoder": parts.clip_text(), "tokenizer": parts.clip_tokenizer()}
    pieces |= {"text_encoder_2": parts.clip_text(projection=True), "tokenizer_2": parts.clip_tokenizer()}
    scheduler = parts.scheduler(d.DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++", steps_offset=1)
    text = {"editing_prompt": ["a dog"], "use_intersect_mask": False}
    config = {"cross_attention_dim": 2 * parts.WIDTH}
    pipe, inputs = sdxl(d.LEditsPPPipelineStableDiffusionXL, config, scheduler, text, pieces)
    pipe.invert(pil_image(32), num_inversion_steps=4, skip=0.2, generator=parts.generator())
    del inputs["num_inference_steps"]
    return pipe, inputs


def kolors(module, cls, **inputs):
    """Straight from its module: diffusers itself exports it only beside sentencepiece."""
    cls = getattr(importlib.import_module(f"diffusers.pipelines.{module}"), cls)
    pipe, inputs = sdxl(cls, scheduler=parts.scheduler(d.EulerDiscreteScheduler, beta_end=0.014), **inputs)
    pipe.encode_prompt = lambda *args, **kwargs: tuple(texts(pooled=parts.WIDTH).values())  # of img2img, forgets some
    return pipe, inputs


def dreamlite(cls, **inputs):
    """Its denoiser reads the sample beside another image, as one wide image; its decoder is a tiny one."""
    unet = parts.unet(
        d.DreamLiteUNetModel,
        down_block_types=("DreamLiteDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
        mid_block_type="DreamLiteUNetMidBlock2DCrossAttn",
        num_kv_heads=1,
    )
    shape = {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4)}
    vae = d.AutoencoderTiny(**shape, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), shift_factor=0.1)
    scheduler = d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = build(cls, unet=awaken(unet), vae=vae.eval(), scheduler=scheduler, text_encoder=parts.clip_text())

    def encode(prompts, **options):
        return embeds(len(prompts), 5, parts.WIDTH), torch.ones(len(prompts), 5, dtype=torch.bool)

    pipe.encode_prompt = encode  # it takes no embeddings
    return pipe, parts.call(prompt="a cat", **inputs)


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
            d.StableDiffusionXLInstructPix2PixPipeline, {"in_channels": 8}, image=image()
        ),
        "StableDiffusionXLControlNetPipeline": lambda: controlled(
            d.StableDiffusionXLControlNetPipeline, image=image()
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
            d.StableDiffusionXLControlNetPAGPipeline, image=image()
        ),
        "StableDiffusionXLControlNetPAGImg2ImgPipeline": lambda: controlled(
            d.StableDiffusionXLControlNetPAGImg2ImgPipeline, **again(), **control()
        ),
        "StableDiffusionXLControlNetXSPipeline": controlnet_xs,
        "StableDiffusionXLAdapterPipeline": lambda: sdxl(
            d.StableDiffusionXLAdapterPipeline,
            parts.T2I_BLOCKS,
            pieces={"adapter": parts.t2i_adapter()},
            image=image(),
        ),
        "StableDiffusionXLPipeline + IP-Adapter": with_ip_adapter,
        "LEditsPPPipelineStableDiffusionXL": ledits,
        "KolorsPipeline": lambda: kolors("kolors.pipeline_kolors", "KolorsPipeline"),
        "KolorsImg2ImgPipeline": lambda: kolors("kolors.pipeline_kolors_img2img", "KolorsImg2ImgPipeline", **again()),
        "KolorsPAGPipeline": lambda: kolors("pag.pipeline_pag_kolors", "KolorsPAGPipeline"),
        "DreamLitePipeline": lambda: dreamlite(d.DreamLitePipeline),
        "DreamLitePipeline + edit": lambda: dreamlite(d.DreamLitePipeline, image=pil_image()),
        "DreamLiteMobilePipeline": lambda: dreamlite(d.DreamLiteMobilePipeline),
    }
)
