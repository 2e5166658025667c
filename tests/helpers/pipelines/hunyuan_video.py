"""Hunyuan's videos, the image refiner beside them, and Kandinsky 5's videos, which share a decoder."""

import diffusers as d
import torch
from helpers.pipelines import parts
from helpers.pipelines.new_dits import EMBEDS_MASKS
from helpers.pipelines.parts import call, embeds, pil_image, soften, texts
from helpers.pipelines.video_dits import MASKS, assemble, flow


def hunyuan_vae(spatial=8):
    blocks = {8: 4, 2: 2}[spatial]
    return soften(
        d.AutoencoderKLHunyuanVideo(
            latent_channels=4,
            down_block_types=("HunyuanVideoDownBlock3D",) * blocks,
            up_block_types=("HunyuanVideoUpBlock3D",) * blocks,
            block_out_channels=(8,) * blocks,
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.7,
            spatial_compression_ratio=spatial,
            temporal_compression_ratio=4 if blocks > 2 else 2,
        )
    )


def hunyuan(cls=d.HunyuanVideoPipeline, channels=4, **inputs):
    condition = inputs.pop("condition", None)
    transformer = d.HunyuanVideoTransformer3DModel(
        in_channels=channels,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=cls is d.HunyuanVideoPipeline,
        text_embed_dim=8,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
        image_condition_type=condition,
    )
    pipe = assemble(cls, transformer, hunyuan_vae(), flow(shift=7.0))
    text = texts(masks=MASKS, pooled=8)
    return pipe, call(num_frames=9, true_cfg_scale=1.5, **text, **inputs)


def from_image(condition, channels):
    pipe, inputs = hunyuan(
        d.HunyuanVideoImageToVideoPipeline, channels, condition=condition, image=pil_image(), guidance_scale=1.0
    )
    return pipe, inputs


def hunyuan15(cls=d.HunyuanVideo15Pipeline, **inputs):
    transformer = d.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=8,
        text_embed_2_dim=8,
        image_embed_dim=8,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="i2v" if "image" in inputs else "t2v",
    )
    vae = d.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
        scaling_factor=0.7,
    )
    pipe = assemble(cls, transformer, soften(vae), flow(shift=7.0), guider=d.ClassifierFreeGuidance(2.0))
    text = texts(masks=EMBEDS_MASKS)
    text |= {f"{name}_2": value.clone() for name, value in text.items()}
    return pipe, call(side=None if "image" in inputs else 16, num_frames=5, **text, **inputs)


def hunyuan15_from_image():
    pipe, inputs = hunyuan15(d.HunyuanVideo15ImageToVideoPipeline, image=pil_image())
    pipe.encode_image = lambda *args, **kwargs: embeds(1, 4, 8)
    return pipe, inputs


def refiner():
    transformer = d.HunyuanImageTransformer2DModel(
        in_channels=16,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1, 1),
        text_embed_dim=8,
        rope_axes_dim=(4, 6, 6),
        guidance_embeds=True,
    )
    vae = d.AutoencoderKLHunyuanImageRefiner(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=2,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
        scaling_factor=0.7,
    )
    guider = d.ClassifierFreeGuidance(1.0)
    pipe = assemble(d.HunyuanImageRefinerPipeline, transformer, soften(vae), flow(shift=4.0), guider=guider)
    return pipe, call(image=pil_image(), **texts(masks=EMBEDS_MASKS))


def kandinsky5(cls=d.Kandinsky5T2VPipeline, visual_cond=False, **inputs):
    transformer = d.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        visual_cond=visual_cond,
        in_text_dim=8,
        in_text_dim2=8,
        time_dim=16,
        model_dim=16,
        ff_dim=16,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 2, 2),
    )
    pipe = assemble(cls, transformer, hunyuan_vae(), flow())
    text = {f"{name}_qwen": value for name, value in texts().items()}
    text |= {f"{sign}prompt_embeds_clip": embeds(1, 8, seed=i) for i, sign in enumerate(("", "negative_"))}
    text |= {f"{sign}prompt_cu_seqlens": torch.tensor([0, 5], dtype=torch.int32) for sign in ("", "negative_")}
    return pipe, call(side=None, height=32, width=48, **{"num_frames": 9, **text, **inputs})


PIPELINES = parts.seeded(
    {
        "HunyuanVideoPipeline": hunyuan,
        "HunyuanVideoImageToVideoPipeline": lambda: from_image("token_replace", 4),
        "HunyuanVideoImageToVideoPipeline + concatenated": lambda: from_image("latent_concat", 9),
        "HunyuanSkyreelsImageToVideoPipeline": lambda: hunyuan(
            d.HunyuanSkyreelsImageToVideoPipeline, 8, image=pil_image()
        ),
        "HunyuanVideo15Pipeline": hunyuan15,
        "HunyuanVideo15ImageToVideoPipeline": hunyuan15_from_image,
        "HunyuanImageRefinerPipeline": refiner,
        "Kandinsky5T2VPipeline": kandinsky5,
        "Kandinsky5I2VPipeline": lambda: kandinsky5(
            d.Kandinsky5I2VPipeline, visual_cond=True, image=pil_image(), prompt="a cat", num_frames=21
        ),
    }
)

LAST_STEP = dict.fromkeys(PIPELINES, "frames may be given beside the latents")
SCALES = {"HunyuanVideoPipeline": 0.1, "HunyuanVideoImageToVideoPipeline + concatenated": 1.0}
