"""Wan and those of its layout: five frames of a video; texts are given as embeddings."""

import diffusers as d
import torch
from helpers.pipelines import parts
from helpers.pipelines.parts import awaken, build, call, texts

TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "out_channels": 4,
    "text_dim": 8,
    "freq_dim": 8,
    "ffn_dim": 16,
    "num_layers": 1,
    "rope_max_seq_len": 32,
}


def video_vae():
    """It shrinks time by 4, as its encoder counts on."""
    return parts.soften(
        d.AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[0.9, 1.1, 1.2, 0.8],
        ),
        scale=1.0,
    )


def wan(cls, channels=4, kind=d.WanTransformer3DModel, config=None, **inputs):
    torch.manual_seed(0)
    scheduler = d.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    pipe = build(
        cls,
        transformer=awaken(kind(in_channels=channels, **TRANSFORMER, **(config or {}))),
        vae=video_vae(),
        scheduler=scheduler,
    )
    if "video" not in inputs:
        inputs["num_frames"] = 5
    return pipe, call(side=None, height=32, width=48, **texts(), **inputs)


def image_to_video(cls, kind=d.WanTransformer3DModel, channels=4 + 4 + 4, **options):
    """The transformer also reads the first frame: its latents, and a mask of as many channels as frames in one."""
    pipe, inputs = wan(cls, channels, kind, image=parts.image(48)[..., :32, :], **options)
    return pipe, inputs


def expanded(pipe, inputs):
    """Wan 2.2's way: a timestep for each token; from an image, the image's tokens are clean."""
    pipe.register_to_config(expand_timesteps=True)
    return pipe, inputs


SKYREELS = d.SkyReelsV2Transformer3DModel
PIPELINES = {
    "WanPipeline": lambda: wan(d.WanPipeline),
    "WanPipeline + expand_timesteps": lambda: expanded(*wan(d.WanPipeline)),
    "WanVideoToVideoPipeline": lambda: wan(d.WanVideoToVideoPipeline, video=[parts.pil_image(48)] * 5, strength=0.8),
    "WanImageToVideoPipeline": lambda: image_to_video(d.WanImageToVideoPipeline),
    "WanImageToVideoPipeline + expand_timesteps": lambda: expanded(
        *image_to_video(d.WanImageToVideoPipeline, channels=4)
    ),
    "SkyReelsV2Pipeline": lambda: wan(d.SkyReelsV2Pipeline, kind=SKYREELS),
}

LAST_STEP = dict.fromkeys(
    ("WanImageToVideoPipeline", "WanImageToVideoPipeline + expand_timesteps"), "its latents may lack the given image"
)
SCALES = {"WanImageToVideoPipeline + expand_timesteps": 10_000.0}  # one of its two frames is given
