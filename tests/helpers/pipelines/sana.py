"""Sana, its ControlNet, its perturbed attention and its few-step Sprint; texts are given as embeddings."""

import diffusers as d
import torch
from helpers.pipelines import parts
from helpers.pipelines.parts import awaken, build, call, image, texts

MASKS = ("prompt_attention_mask", "negative_prompt_attention_mask")
CONFIG = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 4,
    "cross_attention_dim": 8,
    "caption_channels": 8,
    "sample_size": 16,
}


def vae():
    return parts.soften(
        d.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.7,
        )
    )


def sana(cls, scheduler=None, controlnet=False, negative=True, config=None, **inputs):
    torch.manual_seed(0)
    held = {"controlnet": awaken(d.SanaControlNetModel(**CONFIG))} if controlnet else {}
    pipe = build(
        cls,
        transformer=awaken(d.SanaTransformer2DModel(**CONFIG, **(config or {}))),
        vae=vae(),
        scheduler=scheduler or d.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **held,
    )
    text = texts(masks=MASKS)
    if not negative:
        text = {name: value for name, value in text.items() if not name.startswith("negative")}
    else:
        text["negative_prompt"] = None
    return pipe, call(side=32, use_resolution_binning=False, **text, **inputs)


def sprint(cls, **inputs):
    config = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}
    return sana(cls, d.SCMScheduler(), negative=False, config=config, steps=2, **inputs)


PIPELINES = {
    "SanaPipeline": lambda: sana(d.SanaPipeline),
    "SanaPipeline + DPM-Solver": lambda: sana(
        d.SanaPipeline, d.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    ),
    "SanaPAGPipeline": lambda: sana(d.SanaPAGPipeline),
    "SanaControlNetPipeline": lambda: sana(d.SanaControlNetPipeline, controlnet=True, control_image=image(32)),
    "SanaSprintPipeline": lambda: sprint(d.SanaSprintPipeline),
    "SanaSprintImg2ImgPipeline": lambda: sprint(d.SanaSprintImg2ImgPipeline, image=image(32), strength=0.6),
}

#: Why a pipeline cannot be guided in mode "exact".
NO_EXACT = dict.fromkeys(
    ("SanaSprintPipeline", "SanaSprintImg2ImgPipeline"), "it mixes the sample into the model output by itself"
)
