"""Modular pipelines without their text encoder; texts are given as embeddings."""

import diffusers as d
import torch
from helpers.pipelines import (
    flux,
    hunyuan_video,
    new_dits,
    parts,
    qwen_and_friends,
    sd3,
    video,
    video_dits,
    video_wan_vae,
)


def modular(cls, like=None, **components):
    """A modular pipeline of the components of a stock one."""
    blocks = cls().blocks
    for name in ("text_encoder", "prompt_enhancer", "prompt_upsample", "prompt_upsampler"):
        blocks.sub_blocks.pop(name, None)
    pipe = blocks.init_pipeline()
    if like is not None:
        components |= {name: getattr(like, name) for name in ("transformer", "vae", "scheduler")}
    pipe.update_components(**components)
    return parts.quiet(pipe)


def stable_diffusion_xl():
    torch.manual_seed(0)
    unet = parts.unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=8 + 6 * 2,
        cross_attention_dim=8,
    )
    scheduler = parts.scheduler(d.EulerDiscreteScheduler)
    vae = parts.vae(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.9, 1.1, 1.2, 0.8])
    pipe = modular(d.StableDiffusionXLModularPipeline, unet=unet, vae=vae, scheduler=scheduler)
    return pipe, parts.call(**parts.texts(pooled=8))


def stable_diffusion3():
    pipe, inputs = sd3.sd3(d.StableDiffusion3Pipeline)
    return modular(d.StableDiffusion3ModularPipeline, pipe), inputs


def flux1():
    pipe, inputs = flux.flux(d.FluxPipeline)
    return modular(d.FluxModularPipeline, pipe), inputs


def flux2(cls=d.Flux2ModularPipeline, guidance_embeds=True):
    pipe, inputs = flux.flux2(d.Flux2Pipeline, guidance_embeds=guidance_embeds)
    return modular(cls, pipe), inputs


def qwen_image():
    pipe, inputs = qwen_and_friends.qwen(d.QwenImagePipeline)
    del inputs["true_cfg_scale"]
    return modular(d.QwenImageModularPipeline, pipe), inputs


def z_image():
    pipe, inputs = qwen_and_friends.z_image(d.ZImagePipeline)
    return modular(d.ZImageModularPipeline, pipe), {**inputs, "height": 32, "width": 48}


def krea2():
    pipe, inputs = new_dits.krea2()
    return modular(d.Krea2ModularPipeline, pipe), inputs


def ernie():
    pipe, inputs = new_dits.ernie()
    return modular(d.ErnieImageModularPipeline, pipe), inputs


def qwen_image21():
    pipe, inputs = new_dits.qwen_image21()
    del inputs["true_cfg_scale"]
    inputs |= {f"{sign}image_pad_mask": torch.zeros(1, 5, dtype=torch.bool) for sign in ("", "negative_")}
    return modular(d.QwenImage21ModularPipeline, pipe), inputs


def wan():
    pipe, inputs = video.wan(d.WanPipeline)
    return modular(d.WanModularPipeline, pipe), inputs


def ltx(**inputs):
    pipe, others = video_dits.ltx()
    return modular(d.LTXModularPipeline, pipe), {**others, **inputs}


def hunyuan15():
    pipe, inputs = hunyuan_video.hunyuan15()
    return modular(d.HunyuanVideo15ModularPipeline, pipe), inputs


def ideogram():
    pipe, inputs = video_wan_vae.ideogram()
    modular_pipe = modular(d.Ideogram4ModularPipeline, pipe)
    modular_pipe.update_components(unconditional_transformer=pipe.unconditional_transformer)
    del inputs["prompt"], inputs["max_sequence_length"]
    return modular_pipe, {**inputs, "text_features": parts.embeds(1, 5, 8), "text_lengths": [5]}


def flux3():
    torch.manual_seed(0)
    transformer = d.Flux3Transformer2DModel(
        in_channels=16,
        cond_in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        timestep_channels=8,
        axes_dims_rope=(2, 2, 2, 2),
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler()
    pipe = modular(
        d.Flux3ModularPipeline, transformer=parts.awaken(transformer), vae=flux.flux2_vae(), scheduler=scheduler
    )
    return pipe, flux.size(**parts.texts())


def anima():
    torch.manual_seed(0)
    video_wan_vae.stand_in_for_torchvision()
    conditioner = d.AnimaTextConditioner(
        source_dim=8,
        target_dim=8,
        model_dim=8,
        num_layers=1,
        num_attention_heads=2,
        target_vocab_size=16,
        min_sequence_length=5,
    )
    transformer = d.CosmosTransformer3DModel(concat_padding_mask=True, **{**video_wan_vae.COSMOS, "in_channels": 4})
    pipe = modular(
        d.AnimaModularPipeline,
        transformer=parts.awaken(transformer),
        vae=qwen_and_friends.video_vae(),
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_conditioner=parts.awaken(conditioner),
    )
    text = {}
    for i, sign in enumerate(("", "negative_")):
        text[f"{sign}qwen_prompt_embeds"] = parts.embeds(1, 5, 8, seed=i)
        text[f"{sign}t5_input_ids"] = torch.arange(5)[None] + i
        text |= {f"{sign}{name}_attention_mask": torch.ones(1, 5, dtype=torch.long) for name in ("qwen", "t5")}
    return pipe, parts.call(side=None, height=16, width=32, **text)


def qwen_image_edit():
    pipe, inputs = qwen_and_friends.qwen(d.QwenImagePipeline)
    del inputs["true_cfg_scale"]
    inputs["image_latents"] = parts.embeds(1, 4, 1, 8, 8, seed=7)
    return modular(d.QwenImageEditModularPipeline, pipe), inputs


PIPELINES = {
    "StableDiffusionXLModularPipeline": stable_diffusion_xl,
    "StableDiffusion3ModularPipeline": stable_diffusion3,
    "FluxModularPipeline": flux1,
    "Flux2ModularPipeline": flux2,
    "Flux2KleinModularPipeline": lambda: flux2(d.Flux2KleinModularPipeline, guidance_embeds=False),
    "QwenImageModularPipeline": qwen_image,
    "ZImageModularPipeline": z_image,
    "Krea2ModularPipeline": krea2,
    "ErnieImageModularPipeline": ernie,
    "QwenImage21ModularPipeline": qwen_image21,
    "WanModularPipeline": wan,
    "LTXModularPipeline": ltx,
    "LTXModularPipeline + image": lambda: ltx(image=parts.pil_image(64).resize((64, 32))),
    "HunyuanVideo15ModularPipeline": hunyuan15,
    "Ideogram4ModularPipeline": ideogram,
    "Flux3ModularPipeline": flux3,
    "AnimaModularPipeline": anima,
    "QwenImageEditModularPipeline": qwen_image_edit,
}

#: Why a pipeline's latents cannot be asked for by ``output_type="latent"``.
NO_LATENTS = dict.fromkeys(PIPELINES, "blocks before the decoder have unpacked them")
#: Why a pipeline cannot be guided in mode "exact".
NO_EXACT = {"LTXModularPipeline + image": "a block unpacks its prediction where no gradient is recorded"}
LAST_STEP = dict.fromkeys(
    (
        *("LTXModularPipeline", "LTXModularPipeline + image", "HunyuanVideo15ModularPipeline"),
        *("Ideogram4ModularPipeline", "Flux3ModularPipeline", "AnimaModularPipeline", "QwenImageEditModularPipeline"),
    ),
    "its state holds unpacked latents",
)
