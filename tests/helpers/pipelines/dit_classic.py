"""Transformers that read an image's latents as they are: DiT, PixArt, HunyuanDiT, Lumina, CogView and others.

Texts are given as embeddings, so that no text encoder is needed; OmniGen's transformer reads token ids.
"""

from types import SimpleNamespace
from unittest.mock import MagicMock

import diffusers as d
import torch
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen
from helpers.pipelines import parts
from helpers.pipelines.parts import awaken, build, call, embeds, image, texts

MASKS = ("prompt_attention_mask", "negative_prompt_attention_mask")
HEADS = {"attention_head_dim": 8, "num_attention_heads": 2}
DIT = {"sample_size": 8, "num_layers": 2, "patch_size": 2, "in_channels": 4, **HEADS}


def flow(**config):
    return d.FlowMatchEulerDiscreteScheduler(**config)


def assemble(cls, transformer, scheduler=None, vae=None, **more):
    torch.manual_seed(0)
    transformer = awaken(transformer())
    vae = parts.vae() if vae is None else vae()
    return build(cls, transformer=transformer, vae=vae, scheduler=scheduler or flow(), **more)


def dit():
    def transformer():
        return d.DiTTransformer2DModel(out_channels=8, norm_type="ada_norm_zero", **DIT)

    pipe = assemble(d.DiTPipeline, transformer, parts.scheduler())
    return pipe, call(side=None, class_labels=[1], guidance_scale=2.0)


def pixart(cls):
    def transformer():
        return d.PixArtTransformer2DModel(out_channels=8, cross_attention_dim=16, caption_channels=8, **DIT)

    pipe = assemble(cls, transformer, parts.scheduler())
    return pipe, call(use_resolution_binning=False, negative_prompt=None, **texts(masks=MASKS))


def hunyuan_dit(cls, controlnet=False, **more):
    """Rotary positions count on a decoder of 8 times, so that images are 32 x 32 and latents 4 x 4."""
    config = {
        "sample_size": 4,
        "patch_size": 2,
        "in_channels": 4,
        "hidden_size": 16,
        "cross_attention_dim": 8,
        "cross_attention_dim_t5": 8,
        "pooled_projection_dim": 8,
        "text_len": 5,
        "text_len_t5": 6,
        **HEADS,
    }
    held = {"requires_safety_checker": False, "safety_checker": None}
    if controlnet:
        held["controlnet"] = awaken(d.HunyuanDiT2DControlNetModel(transformer_num_layers=4, **config))
        more["control_image"] = image(32)
    pipe = assemble(
        cls,
        lambda: d.HunyuanDiT2DModel(num_layers=4 if controlnet else 2, **config),
        parts.scheduler(),
        lambda: parts.vae(blocks=4),
        **held,
    )
    second = {f"{name}_2": value for name, value in texts(6, masks=MASKS).items()}
    return pipe, call(side=32, use_resolution_binning=False, **texts(5, masks=MASKS), **second, **more)


def aura_flow():
    def transformer():
        return d.AuraFlowTransformer2DModel(
            sample_size=8,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            joint_attention_dim=8,
            caption_projection_dim=16,
            pos_embed_max_size=64,
            **HEADS,
        )

    return assemble(d.AuraFlowPipeline, transformer), call(**texts(masks=MASKS))


def lumina():
    def transformer():
        return d.LuminaNextDiT2DModel(
            sample_size=4,
            hidden_size=24,
            num_layers=2,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=16,
            cross_attention_dim=8,
        )

    return assemble(d.LuminaPipeline, transformer, vae=lambda: parts.vae(4)), call(side=32, **texts(masks=MASKS))


def lumina2():
    def transformer():
        return d.Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=8,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=1,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(128, 128, 128),
            cap_feat_dim=8,
        )

    pipe = assemble(d.Lumina2Pipeline, transformer, vae=lambda: parts.vae(4, shift_factor=0.1))
    return pipe, call(side=32, **texts(masks=MASKS))


def cogview3(scheduler=d.CogVideoXDDIMScheduler):
    def transformer():
        return d.CogView3PlusTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            text_embed_dim=8,
            time_embed_dim=8,
            condition_dim=2,
            pos_embed_max_size=8,
            sample_size=8,
            **HEADS,
        )

    return assemble(d.CogView3PlusPipeline, transformer, parts.scheduler(scheduler)), call(**texts())


def cogview4(cls=d.CogView4Pipeline, channels=4, **more):
    def transformer():
        return d.CogView4Transformer2DModel(
            in_channels=channels,
            out_channels=4,
            num_layers=1,
            text_embed_dim=8,
            time_embed_dim=8,
            condition_dim=4,
            rope_axes_dim=(16, 16),
            **HEADS,
        )

    shifting = {"base_shift": 0.25, "max_shift": 0.75, "use_dynamic_shifting": True, "time_shift_type": "linear"}
    return assemble(cls, transformer, flow(**shifting), lambda: parts.vae(4)), call(side=32, **texts(), **more)


class Letters:
    """OmniGen's tokenizer: one id a letter."""

    model_max_length = 64

    def __call__(self, text):
        return SimpleNamespace(input_ids=[1, *(ord(letter) % 64 for letter in text)])


def omnigen():
    def transformer():
        return d.OmniGenTransformer2DModel(
            hidden_size=16,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=32,
            num_layers=1,
            pad_token_id=0,
            vocab_size=64,
            time_step_dim=4,
            rope_scaling={"long_factor": [1, 2, 3, 4], "short_factor": [1, 2, 3, 4]},
        )

    # Its processor reads images with torchvision; without that library, this prompt of text alone needs no more.
    for module, name, value in (
        (processor_omnigen, "transforms", MagicMock()),
        (pipeline_omnigen, "OmniGenMultiModalProcessor", processor_omnigen.OmniGenMultiModalProcessor),
    ):
        vars(module).setdefault(name, value)
    pipe = assemble(d.OmniGenPipeline, transformer, flow(invert_sigmas=True), lambda: parts.vae(4), tokenizer=Letters())
    return pipe, call(side=32, prompt="a cat", guidance_scale=2.0)


def hidream():
    def transformer():
        return d.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            caption_channels=[8, 8],
            text_emb_dim=8,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(8, 8),
            llama_layers=(0, 1),
            **HEADS,
        )

    pipe = assemble(d.HiDreamImagePipeline, transformer, vae=lambda: parts.vae(shift_factor=0.1))
    pipe.default_sample_size = 8  # the largest image
    t5, llama = texts(5), {name: embeds(2, 1, 5, 8, seed=i) for i, name in enumerate(("", "negative_"))}
    named = {f"{name}_t5": value for name, value in t5.items()}
    named |= {f"{sign}prompt_embeds_llama3": value for sign, value in llama.items()}
    named |= {f"{sign}pooled_prompt_embeds": embeds(1, 8, seed=i) for i, sign in enumerate(llama)}
    return pipe, call(**named)


PIPELINES = {
    "DiTPipeline": dit,
    "PixArtAlphaPipeline": lambda: pixart(d.PixArtAlphaPipeline),
    "PixArtSigmaPipeline": lambda: pixart(d.PixArtSigmaPipeline),
    "PixArtSigmaPAGPipeline": lambda: pixart(d.PixArtSigmaPAGPipeline),
    "HunyuanDiTPipeline": lambda: hunyuan_dit(d.HunyuanDiTPipeline),
    "HunyuanDiTControlNetPipeline": lambda: hunyuan_dit(d.HunyuanDiTControlNetPipeline, controlnet=True),
    "HunyuanDiTPAGPipeline": lambda: hunyuan_dit(d.HunyuanDiTPAGPipeline),
    "AuraFlowPipeline": aura_flow,
    "LuminaPipeline": lumina,
    "Lumina2Pipeline": lumina2,
    "CogView3PlusPipeline": cogview3,
    "CogView3PlusPipeline + DPM": lambda: cogview3(d.CogVideoXDPMScheduler),
    "CogView4Pipeline": cogview4,
    "CogView4ControlPipeline": lambda: cogview4(d.CogView4ControlPipeline, channels=8, control_image=image(32)),
    "OmniGenPipeline": omnigen,
    "HiDreamImagePipeline": hidream,
}

#: Why a pipeline's latents cannot be asked for by ``output_type="latent"``.
NO_LATENTS = {"DiTPipeline": "it always decodes"}
