"""Qwen-Image, Z-Image and HunyuanImage; texts are given as embeddings.

The sides of an image differ, so that unpacking with the two confused fails.
"""

import diffusers as d
import torch
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_inpaint,
    pipeline_qwenimage_edit_plus,
)
from helpers.pipelines import parts
from helpers.pipelines.parts import awaken, build, call, image, mask, texts

HEIGHT, WIDTH = 16, 24


def size(**inputs):
    return call(side=None, height=HEIGHT, width=WIDTH, **inputs)


def wide():
    return image(WIDTH)[..., :HEIGHT, :]


def wide_mask():
    return mask(WIDTH)[..., :HEIGHT, :]


def again(**inputs):
    return {"image": wide(), "strength": 0.8, **inputs}


def video_vae():
    torch.manual_seed(0)
    vae = d.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.9, 1.1, 1.2, 0.8],
    )
    return parts.soften(vae, 1.0)


QWEN = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 8,
    "axes_dims_rope": (4, 2, 2),
}


def qwen(cls, controlnet=None, **inputs):
    torch.manual_seed(0)
    held = {}
    if controlnet is not None:
        held["controlnet"] = awaken(d.QwenImageControlNetModel(**QWEN, **controlnet))
    pipe = build(
        cls,
        transformer=awaken(d.QwenImageTransformer2DModel(**QWEN)),
        vae=video_vae(),
        scheduler=d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        **held,
    )
    masks = ("prompt_embeds_mask", "negative_prompt_embeds_mask")
    return pipe, size(true_cfg_scale=2.0, **texts(masks=masks), **inputs)


def qwen_edit(cls, module, **inputs):
    """The pipeline enlarges the image it edits to a million pixels; here, to a few hundred."""
    dimensions = module.calculate_dimensions
    if dimensions.__module__ != __name__:
        module.calculate_dimensions = lambda area, ratio: small_dimensions(dimensions, ratio)
        module.calculate_dimensions.__module__ = __name__
    image = parts.pil_image(32)
    return qwen(cls, image=[image] if module is pipeline_qwenimage_edit_plus else image, **inputs)


def small_dimensions(dimensions, ratio):
    return dimensions(32 * 32, ratio)


Z_IMAGE = {"dim": 16, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}


def z_image(cls, controlnet=None, omni=False, **inputs):
    torch.manual_seed(0)
    transformer = d.ZImageTransformer2DModel(
        in_channels=4,
        n_layers=2,
        cap_feat_dim=8,
        siglip_feat_dim=8 if omni else None,
        axes_dims=[4, 2, 2],
        axes_lens=[128, 32, 32],
        **Z_IMAGE,
    )
    held = {}
    if controlnet is not None:
        held["controlnet"] = d.ZImageControlNetModel(
            control_layers_places=[0, 1], control_refiner_layers_places=[0], **Z_IMAGE, **controlnet
        )
        held["controlnet"] = awaken(d.ZImageControlNetModel.from_transformer(held["controlnet"], transformer))
    pipe = build(
        cls,
        transformer=awaken(transformer),
        vae=parts.vae(shift_factor=0.1),
        scheduler=d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        **held,
    )
    text = {name: [[value[0]] if omni else value[0]] for name, value in texts(8).items()}
    return pipe, size(**text, **inputs)


def hunyuan_image():
    torch.manual_seed(0)
    vae = d.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=16,
        scaling_factor=0.7,
    )
    transformer = d.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=8,
        text_embed_2_dim=8,
        rope_axes_dim=(4, 4),
    )
    pipe = build(
        d.HunyuanImagePipeline,
        transformer=awaken(transformer),
        vae=parts.soften(vae),
        scheduler=d.FlowMatchEulerDiscreteScheduler(),
        guider=d.AdaptiveProjectedMixGuidance(),
        ocr_guider=d.AdaptiveProjectedMixGuidance(),
    )
    text = texts()
    text |= {f"{name}_2": value for name, value in texts(6).items()}
    masks = {name.replace("embeds", "embeds_mask"): torch.ones(value.shape[:2]).long() for name, value in text.items()}
    return pipe, size(**text, **masks)


PIPELINES = {
    "QwenImagePipeline": lambda: qwen(d.QwenImagePipeline),
    "QwenImageImg2ImgPipeline": lambda: qwen(d.QwenImageImg2ImgPipeline, **again()),
    "QwenImageInpaintPipeline": lambda: qwen(d.QwenImageInpaintPipeline, **again(mask_image=wide_mask())),
    "QwenImageControlNetPipeline": lambda: qwen(d.QwenImageControlNetPipeline, controlnet={}, control_image=wide()),
    "QwenImageControlNetInpaintPipeline": lambda: qwen(
        d.QwenImageControlNetInpaintPipeline,
        controlnet={"extra_condition_channels": 4},
        control_image=wide(),
        control_mask=wide_mask(),
    ),
    "QwenImageEditPipeline": lambda: qwen_edit(d.QwenImageEditPipeline, pipeline_qwenimage_edit),
    "QwenImageEditInpaintPipeline": lambda: qwen_edit(
        d.QwenImageEditInpaintPipeline, pipeline_qwenimage_edit_inpaint, mask_image=parts.pil_mask(32), strength=0.8
    ),
    "QwenImageEditPlusPipeline": lambda: qwen_edit(d.QwenImageEditPlusPipeline, pipeline_qwenimage_edit_plus),
    "ZImagePipeline": lambda: z_image(d.ZImagePipeline),
    "ZImageImg2ImgPipeline": lambda: z_image(d.ZImageImg2ImgPipeline, **again()),
    "ZImageInpaintPipeline": lambda: z_image(d.ZImageInpaintPipeline, **again(mask_image=wide_mask())),
    "ZImageControlNetPipeline": lambda: z_image(
        d.ZImageControlNetPipeline, controlnet={"control_in_dim": 4}, control_image=wide()
    ),
    "ZImageControlNetInpaintPipeline": lambda: z_image(
        d.ZImageControlNetInpaintPipeline,
        controlnet={"control_in_dim": 9, "add_control_noise_refiner": "control_noise_refiner"},
        image=wide(),
        mask_image=wide_mask(),
        control_image=wide(),
    ),
    "ZImageOmniPipeline": lambda: z_image(d.ZImageOmniPipeline, omni=True),
    "HunyuanImagePipeline": hunyuan_image,
}
