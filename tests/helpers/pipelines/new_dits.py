"""The image transformers of 2025 and 2026 that share a layout with an older one; texts are given as embeddings.

The sides of an image differ where the pipeline packs latents, so that unpacking with the two confused fails.
"""

from types import SimpleNamespace

import diffusers as d
import torch
from helpers.pipelines import parts
from helpers.pipelines.flux import CONFIG, flux2_vae, size
from helpers.pipelines.parts import awaken, build, call, embeds, soften, texts
from helpers.pipelines.qwen_and_friends import video_vae

EMBEDS_MASKS = ("prompt_embeds_mask", "negative_prompt_embeds_mask")
HEADS = {"attention_head_dim": 8, "num_attention_heads": 2}


def flow(**config):
    return d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **config)


def shifted_vae():
    return parts.vae(shift_factor=0.1)


def assemble(cls, transformer, vae=shifted_vae, scheduler=flow, **more):
    torch.manual_seed(0)
    return build(cls, transformer=awaken(transformer()), vae=vae(), scheduler=scheduler(), **more)


def bria():
    def transformer():
        return d.BriaTransformer2DModel(**CONFIG, axes_dims_rope=[2, 2, 4])

    return assemble(d.BriaPipeline, transformer), size(**texts())


def ovis():
    def transformer():
        return d.OvisImageTransformer2DModel(**CONFIG, out_channels=16, axes_dims_rope=(2, 2, 4))

    return assemble(d.OvisImagePipeline, transformer), size(negative_prompt=None, **texts())


def longcat():
    def transformer():
        return d.LongCatImageTransformer2DModel(**{**CONFIG, "in_channels": 64}, axes_dims_rope=[2, 2, 4])

    pipe = assemble(d.LongCatImagePipeline, transformer, lambda: parts.vae(channels=16, shift_factor=0.1))
    pipe._encode_prompt = lambda prompt: embeds(1, 5, 8, seed=len(prompt[0]))  # it takes no embeddings
    return pipe, size(prompt="a cat", enable_prompt_rewrite=False)


def krea2():
    def transformer():
        return d.Krea2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_key_value_heads=1,
            intermediate_size=16,
            timestep_embed_dim=8,
            text_hidden_dim=8,
            num_text_layers=2,
            text_num_attention_heads=1,
            text_num_key_value_heads=1,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
            **HEADS,
        )

    pipe = assemble(d.Krea2Pipeline, transformer, video_vae, text_encoder_select_layers=(0, 1))
    text = texts(masks=EMBEDS_MASKS)
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        text[name] = torch.stack([text[name], text[name].flip(1)], 2)  # of two layers
    text |= {name: text[name].bool() for name in EMBEDS_MASKS}
    return pipe, size(**text)


def nucleus():
    def transformer():
        return d.NucleusMoEImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            num_key_value_heads=1,
            joint_attention_dim=8,
            axes_dims_rope=(4, 2, 2),
            dense_moe_strategy="leave_first_block_dense",
            num_experts=2,
            mlp_ratio=16,
            moe_intermediate_dim=8,
            capacity_factors=[1.0, 1.0],
            **HEADS,
        )

    pipe = assemble(d.NucleusMoEImagePipeline, transformer, video_vae)
    for name, parameter in pipe.transformer.named_parameters():
        if "experts" in name:  # it leaves them uninitialised
            parameter.data = 0.1 * embeds(*parameter.shape)
    return pipe, size(**texts(masks=EMBEDS_MASKS))


class Template:
    """In place of a processor, for the constructor of Qwen-Image 2.1, which measures its template."""

    tokenizer = SimpleNamespace(encode=lambda text: [0])

    def apply_chat_template(self, *args, **kwargs):
        return [[0]]


def qwen_image21():
    """Its decoder enlarges by 16."""

    def transformer():
        return d.QwenImage21Transformer2DModel(
            in_channels=4, out_channels=4, num_layers=1, context_in_dim=8, axes_dims_rope=(4, 2, 2), **HEADS
        )

    def vae():
        return soften(
            d.AutoencoderKLQwenImage21(
                base_dim=4,
                decoder_base_dim=4,
                z_dim=4,
                dim_mult=[1, 1, 1, 1, 1],
                num_res_blocks=1,
                temperal_downsample=[False, True, True, True],
                latents_mean=[0.1, -0.2, 0.3, 0.0],
                latents_std=[0.9, 1.1, 1.2, 0.8],
                in_channels=3,
                out_channels=3,
            )
        )

    pipe = assemble(d.QwenImage21Pipeline, transformer, vae, processor=Template())
    return pipe, call(side=None, height=32, width=64, true_cfg_scale=2.0, **texts(masks=EMBEDS_MASKS))


def prx():
    def transformer():
        return d.PRXTransformer2DModel(
            in_channels=4, context_in_dim=8, hidden_size=16, num_heads=2, depth=1, axes_dim=[4, 4]
        )

    masks = ("prompt_attention_mask", "negative_prompt_attention_mask")
    text = {name: value.bool() if name in masks else value for name, value in texts(masks=masks).items()}
    scheduler = d.FlowMatchEulerDiscreteScheduler
    pipe = assemble(d.PRXPipeline, transformer, scheduler=scheduler)
    return pipe, call(use_resolution_binning=False, **text)


def kandinsky5(cls=d.Kandinsky5T2IPipeline, visual_cond=False, **inputs):
    def transformer():
        return d.Kandinsky5Transformer3DModel(
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

    pipe = assemble(cls, transformer, scheduler=d.FlowMatchEulerDiscreteScheduler)
    pipe.vae_scale_factor_spatial, pipe.resolutions = 2, [(24, 16)]
    text = {f"{name}_qwen": value for name, value in texts().items()}
    text |= {f"{sign}prompt_embeds_clip": embeds(1, 8, seed=i) for i, sign in enumerate(("", "negative_"))}
    text |= {f"{sign}prompt_cu_seqlens": torch.tensor([0, 5], dtype=torch.int32) for sign in ("", "negative_")}
    return pipe, size(**text, **inputs)


def ernie():
    def transformer():
        return d.ErnieImageTransformer2DModel(
            hidden_size=16,
            num_attention_heads=2,
            num_layers=1,
            ffn_hidden_size=16,
            in_channels=16,
            out_channels=16,
            text_in_dim=8,
            rope_axes_dim=(4, 2, 2),
        )

    pipe = assemble(d.ErnieImagePipeline, transformer, flux2_vae, d.FlowMatchEulerDiscreteScheduler)
    text = {name: [value[0]] for name, value in texts().items()}
    return pipe, size(**text)


def fibo2():
    def transformer():
        return d.BriaFibo2Transformer2DModel(
            in_channels=4,
            dim=64,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=8,
            cap_feat_dim=8,
            injection_layer_ids=(1,),
            perceiver_num_layers=1,
            min_num_gist_tokens=4,
            max_num_gist_tokens=4,
            axes_dims=(4, 2, 2),
            axes_lens=(64, 64, 64),
        )

    text = {name: value.bool() if "mask" in name else value for name, value in texts(masks=EMBEDS_MASKS).items()}
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        text[name] = torch.stack([text[name], text[name].flip(1)], 1)  # for two depths of the transformer
    return assemble(d.BriaFibo2Pipeline, transformer, flux2_vae), size(**text)


def fibo(cls=d.BriaFiboPipeline, **inputs):
    """Its decoder enlarges by 16."""

    def transformer():
        return d.BriaFiboTransformer2DModel(
            **{**CONFIG, "in_channels": 16 if inputs.get("do_patching") else 4},
            axes_dims_rope=[2, 2, 4],
            text_encoder_dim=4,
        )

    def vae():
        return soften(
            d.AutoencoderKLWan(
                base_dim=4,
                z_dim=4,
                dim_mult=[1, 1, 1, 1, 1],
                num_res_blocks=1,
                temperal_downsample=[False] * 4,
                latents_mean=[0.1, -0.2, 0.3, 0.0],
                latents_std=[0.9, 1.1, 1.2, 0.8],
            ),
            scale=1.0,
        )

    def encode(prompt, **kwargs):
        layers = tuple(embeds(1, 5, 4, seed=len(prompt[0]) + i) for i in range(2))
        return torch.cat(layers, -1), layers, torch.ones(1, 5)

    pipe = assemble(cls, transformer, vae, text_encoder=parts.clip_text())
    pipe.get_prompt_embeds = encode  # it takes no embeddings
    return pipe, call(side=None, height=32, width=64, **{"prompt": "a cat", **inputs})


def glm():
    def transformer():
        return d.GlmImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            text_embed_dim=8,
            time_embed_dim=8,
            condition_dim=4,
            prior_vq_quantizer_codebook_size=16,
            **HEADS,
        )

    def vae():
        return parts.vae(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.9, 1.1, 1.2, 0.8])

    pipe = assemble(d.GlmImagePipeline, transformer, vae)
    return pipe, call(prior_token_ids=torch.arange(16)[None], **texts())


PIPELINES = {
    "BriaPipeline": bria,
    "OvisImagePipeline": ovis,
    "LongCatImagePipeline": longcat,
    "Krea2Pipeline": krea2,
    "NucleusMoEImagePipeline": nucleus,
    "QwenImage21Pipeline": qwen_image21,
    "PRXPipeline": prx,
    "Kandinsky5T2IPipeline": kandinsky5,
    "Kandinsky5I2IPipeline": lambda: kandinsky5(
        d.Kandinsky5I2IPipeline, visual_cond=True, image=parts.pil_image(), prompt="a cat"
    ),
    "BriaFiboPipeline": fibo,
    "BriaFiboEditPipeline": lambda: fibo(
        d.BriaFiboEditPipeline, image=parts.pil_image(64), prompt='{"edit_instruction": "a cat"}', _auto_resize=False
    ),
    "BriaFiboPipeline + patches": lambda: fibo(do_patching=True),
    "ErnieImagePipeline": ernie,
    "BriaFibo2Pipeline": fibo2,
    "GlmImagePipeline": glm,
}
