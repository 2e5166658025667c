"""Modular pipelines without their text encoder; texts are given as embeddings."""

import diffusers as d
import torch
from helpers.pipelines import flux, new_dits, parts, qwen_and_friends, sd3, video


def modular(cls, like=None, **components):
    """A modular pipeline of the components of a stock one."""
    blocks = cls().blocks
    for name in ("text_encoder", "prompt_enhancer"):
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
}

#: Why a pipeline's latents cannot be asked for by ``output_type="latent"``.
NO_LATENTS = dict.fromkeys(PIPELINES, "blocks before the decoder have unpacked them")
