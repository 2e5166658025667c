"""Video transformers with decoders of their own: LTX, CogVideoX, Mochi, Latte, Allegro, EasyAnimate."""

import diffusers as d
import torch
from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline  # the public name needs OpenCV
from helpers.pipelines import parts
from helpers.pipelines.parts import awaken, build, call, embeds, pil_image, soften, texts

MASKS = ("prompt_attention_mask", "negative_prompt_attention_mask")
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}


def assemble(cls, transformer, vae, scheduler, **more):
    return build(cls, transformer=awaken(transformer), vae=vae, scheduler=scheduler, **more)


def flow(**config):
    return d.FlowMatchEulerDiscreteScheduler(**config)


def video(side=16, count=9):
    return [pil_image(side, seed=i) for i in range(count)]


def ltx_vae(timestep_conditioning=False):
    vae = d.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=timestep_conditioning,
        patch_size=1,
        patch_size_t=1,
        scaling_factor=0.8,
        decoder_causal=False,
    )
    vae.latents_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    vae.latents_std.copy_(torch.tensor([0.9, 1.1, 1.2, 0.8]))
    return soften(awaken(vae))


def ltx_transformer():
    config = {"cross_attention_dim": 16, "caption_channels": 8, **HEADS}
    return d.LTXVideoTransformer3DModel(in_channels=4, out_channels=4, **config)


def ltx(cls=d.LTXPipeline, timestep_conditioning=False, **inputs):
    pipe = assemble(cls, ltx_transformer(), ltx_vae(timestep_conditioning), flow())
    return pipe, call(side=None, height=32, width=64, num_frames=9, **texts(masks=MASKS), **inputs)


def cogvideox_vae():
    return soften(
        d.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
            scaling_factor=0.7,
        )
    )


def cogvideox(cls=d.CogVideoXPipeline, channels=4, scheduler=d.CogVideoXDDIMScheduler, config=None, **inputs):
    transformer = d.CogVideoXTransformer3DModel(
        **{
            **HEADS,
            "in_channels": channels,
            "out_channels": 4,
            "time_embed_dim": 2,
            "text_embed_dim": 8,
            "sample_width": 2,
            "sample_height": 2,
            "sample_frames": 9,
            "max_text_seq_length": 5,
            **(config or {}),
        }
    )
    scheduler = parts.scheduler(scheduler, prediction_type="v_prediction", timestep_spacing="trailing")
    pipe = assemble(cls, transformer, cogvideox_vae(), scheduler)
    if "video" not in inputs and "control_video" not in inputs:
        inputs.setdefault("num_frames", 9)
    return pipe, call(side=None, **texts(), **{"height": 16, "width": 16, **inputs})


def consisid():
    transformer = d.ConsisIDTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=8,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=5,
        is_kps=False,
        is_train_face=True,
        cross_attn_interval=1,
        cross_attn_dim_head=1,
        cross_attn_num_heads=1,
        LFE_id_dim=2,
        LFE_vit_dim=2,
        LFE_depth=5,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=1,
        LFE_num_querie=1,
        LFE_output_dim=21,
        LFE_ff_mult=1,
        LFE_num_scale=1,
    )
    scheduler = parts.scheduler(d.CogVideoXDPMScheduler, timestep_spacing="trailing")
    pipe = assemble(ConsisIDPipeline, transformer, cogvideox_vae(), scheduler)
    face = {"id_vit_hidden": [torch.ones(1, 2, 2)], "id_cond": torch.ones(1, 2)}
    return pipe, call(image=pil_image(), num_frames=9, **texts(), **face)


def mochi():
    transformer = d.MochiTransformer3DModel(
        in_channels=12, pooled_projection_dim=8, text_embed_dim=8, time_embed_dim=4, max_sequence_length=5,
        **{**HEADS, "num_layers": 2},
    )  # fmt: skip
    vae = d.AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    vae.decoder.proj_out.weight.data *= 0.2
    scheduler = flow(invert_sigmas=True)
    pipe = assemble(d.MochiPipeline, transformer, vae.eval(), scheduler)
    return pipe, call(num_frames=7, **texts(masks=MASKS))


def latte(vae=parts.vae, **inputs):
    transformer = d.LatteTransformer3DModel(
        sample_size=8,
        patch_size=2,
        caption_channels=8,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=3,
        **HEADS,
    )
    pipe = assemble(d.LattePipeline, transformer, vae(), parts.scheduler(beta_schedule="linear"))
    options = {"clean_caption": False, "negative_prompt": None, "mask_feature": False}
    return pipe, call(video_length=3, **options, **texts(), **inputs)


def temporal_vae():
    config = {"down_block_types": ("DownEncoderBlock2D",) * 2, "block_out_channels": (32, 32), "scaling_factor": 0.7}
    return d.AutoencoderKLTemporalDecoder(**config).eval()


def allegro():
    transformer = d.AllegroTransformer3DModel(
        in_channels=4, out_channels=4, cross_attention_dim=24, sample_width=8, sample_height=8, sample_frames=8,
        caption_channels=8, **{**HEADS, "attention_head_dim": 12},
    )  # fmt: skip
    vae = d.AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        scaling_factor=0.7,
    )
    vae.enable_tiling()  # it decodes in no other way
    vae.kernel, vae.stride = (8, 16, 16), (4, 8, 8)
    pipe = assemble(d.AllegroPipeline, transformer, soften(vae), parts.scheduler(beta_schedule="linear"))
    return pipe, call(side=32, num_frames=8, clean_caption=False, negative_prompt=None, **texts(masks=MASKS))


def easyanimate(cls=d.EasyAnimatePipeline, channels=4, **inputs):
    transformer = d.EasyAnimateTransformer3DModel(
        in_channels=channels, out_channels=4, time_embed_dim=2, text_embed_dim=8, sample_width=16, sample_height=16,
        patch_size=2, **{**HEADS, "attention_head_dim": 16},
    )  # fmt: skip
    vae = d.AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3),
        up_block_types=("SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3),
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
        scaling_factor=0.7,
    )
    vae.register_to_config(cache_mag_vae=False)  # as the published ones have it
    pipe = assemble(cls, transformer, soften(vae), flow())
    return pipe, call(num_frames=5, **texts(masks=MASKS), **inputs)


#: CogVideoX 1.5, whose patches span two frames.
PADDED = {"patch_size_t": 2, "use_rotary_positional_embeddings": True, "patch_bias": False, "attention_head_dim": 16}
PIPELINES = parts.seeded(
    {
        "LTXPipeline": ltx,
        "LTXPipeline + timestep": lambda: ltx(timestep_conditioning=True),
        "LTXImageToVideoPipeline": lambda: ltx(d.LTXImageToVideoPipeline, image=pil_image(64).resize((64, 32))),
        "CogVideoXPipeline": cogvideox,
        "CogVideoXPipeline + DPM": lambda: cogvideox(scheduler=d.CogVideoXDPMScheduler),
        "CogVideoXPipeline + padding": lambda: cogvideox(config=PADDED),
        "CogVideoXImageToVideoPipeline": lambda: cogvideox(
            d.CogVideoXImageToVideoPipeline, channels=8, image=pil_image()
        ),
        "CogVideoXVideoToVideoPipeline": lambda: cogvideox(d.CogVideoXVideoToVideoPipeline, video=video()),
        "CogVideoXFunControlPipeline": lambda: cogvideox(
            d.CogVideoXFunControlPipeline, channels=8, control_video=video()
        ),
        "ConsisIDPipeline": consisid,
        "MochiPipeline": mochi,
        "LattePipeline": latte,
        "LattePipeline + temporal decoder": lambda: latte(temporal_vae),
        "AllegroPipeline": allegro,
        "EasyAnimatePipeline": easyanimate,
        "EasyAnimateInpaintPipeline": lambda: easyanimate(
            d.EasyAnimateInpaintPipeline,
            channels=9,
            video=embeds(1, 3, 5, 16, 16).clamp(0, 1),
            mask_video=255 * parts.mask()[:, :, None].expand(-1, -1, 5, -1, -1),
        ),
    }
)

LAST_STEP = dict.fromkeys(PIPELINES, "frames may be given beside the latents")
