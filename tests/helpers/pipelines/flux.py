"""Flux 1, Flux 2 and those that pack latents into tokens as they do; texts are given as embeddings.

The sides of an image differ, so that unpacking with the two confused fails.
"""

import diffusers as d
import torch
from helpers.pipelines import parts
from helpers.pipelines.parts import awaken, build, call, embeds, image, mask, texts

HEIGHT, WIDTH = 16, 24
CONFIG = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 8,
}


def scheduler(**config):
    return d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **config)


def size(**inputs):
    return call(side=None, height=HEIGHT, width=WIDTH, **inputs)


def wide():
    return image(WIDTH)[..., :HEIGHT, :]


def wide_mask():
    return mask(WIDTH)[..., :HEIGHT, :]


def again(**inputs):
    return {"image": wide(), "strength": 0.8, **inputs}


def control(**inputs):
    return {"control_image": wide(), **inputs}


def flux(cls, channels=16, controlnet=False, negative=False, vae_blocks=2, **inputs):
    torch.manual_seed(0)
    config = {**CONFIG, "pooled_projection_dim": 8, "axes_dims_rope": (2, 2, 4), "guidance_embeds": True}
    held = {"controlnet": awaken(d.FluxControlNetModel(**config))} if controlnet else {}
    pipe = build(
        cls,
        transformer=awaken(d.FluxTransformer2DModel(**{**config, "in_channels": channels, "out_channels": 16})),
        vae=parts.vae(vae_blocks, shift_factor=0.1),
        scheduler=scheduler(),
        **held,
    )
    text = texts(pooled=8)
    if not negative:
        text = {name: value for name, value in text.items() if not name.startswith("negative")}
    return pipe, size(**text, **({"true_cfg_scale": 2.0} if negative else {}), **inputs)


def kontext(cls, **inputs):
    return flux(cls, negative=True, **again(**inputs), max_area=HEIGHT * WIDTH, _auto_resize=False)


def chroma(cls, **inputs):
    torch.manual_seed(0)
    sizes = {"approximator_num_channels": 8, "approximator_hidden_dim": 8, "approximator_layers": 1}
    pipe = build(
        cls,
        transformer=awaken(d.ChromaTransformer2DModel(**CONFIG, axes_dims_rope=(2, 2, 4), **sizes)),
        vae=parts.vae(shift_factor=0.1),
        scheduler=scheduler(),
    )
    # ChromaInpaintPipeline asks for what only Flux's transformer has.
    pipe.transformer.register_to_config(guidance_embeds=False)
    seen = torch.ones(1, 5, dtype=torch.bool)
    return pipe, size(**texts(), prompt_attention_mask=seen, negative_prompt_attention_mask=seen, **inputs)


def flux2_vae():
    vae = d.AutoencoderKLFlux2(
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    vae.bn.running_mean.uniform_(-1, 1)
    vae.bn.running_var.uniform_(0.5, 2)
    return parts.soften(vae)


def flux2(cls, negative=False, guidance_embeds=False, **inputs):
    torch.manual_seed(0)
    if cls is d.Flux2KleinKVPipeline:
        inputs["image"] = [parts.pil_image(64)]
    pipe = build(
        cls,
        transformer=awaken(
            d.Flux2Transformer2DModel(**CONFIG, axes_dims_rope=(2, 2, 2, 2), guidance_embeds=guidance_embeds)
        ),
        vae=flux2_vae(),
        scheduler=scheduler(),
    )
    text = texts() if negative else {"prompt_embeds": embeds(1, 5, 8)}
    return pipe, size(**text, **inputs)


PIPELINES = {
    "FluxPipeline": lambda: flux(d.FluxPipeline),
    "FluxPipeline + true CFG": lambda: flux(d.FluxPipeline, negative=True),
    "FluxImg2ImgPipeline": lambda: flux(d.FluxImg2ImgPipeline, **again()),
    "FluxInpaintPipeline": lambda: flux(d.FluxInpaintPipeline, **again(mask_image=wide_mask())),
    "FluxControlNetPipeline": lambda: flux(d.FluxControlNetPipeline, controlnet=True, **control()),
    "FluxControlNetImg2ImgPipeline": lambda: flux(
        d.FluxControlNetImg2ImgPipeline, controlnet=True, **again(), **control()
    ),
    "FluxControlNetInpaintPipeline": lambda: flux(
        d.FluxControlNetInpaintPipeline, controlnet=True, **again(mask_image=wide_mask()), **control()
    ),
    "FluxControlPipeline": lambda: flux(d.FluxControlPipeline, 32, **control()),
    "FluxControlImg2ImgPipeline": lambda: flux(d.FluxControlImg2ImgPipeline, 32, **again(), **control()),
    "FluxControlInpaintPipeline": lambda: flux(
        d.FluxControlInpaintPipeline, 32, **again(mask_image=wide_mask()), **control()
    ),
    "FluxFillPipeline": lambda: flux(
        # Latents, those of the image, and 4 x 4 pixels of mask for each of the 2 x 2 latents of a token.
        d.FluxFillPipeline,
        16 + 16 + 64,
        vae_blocks=3,
        image=wide(),
        mask_image=wide_mask(),
    ),
    "FluxKontextPipeline": lambda: flux(
        d.FluxKontextPipeline, negative=True, image=wide(), max_area=HEIGHT * WIDTH, _auto_resize=False
    ),
    "FluxKontextInpaintPipeline": lambda: kontext(d.FluxKontextInpaintPipeline, mask_image=wide_mask()),
    "Flux2Pipeline": lambda: flux2(d.Flux2Pipeline, guidance_embeds=True),
    "Flux2KleinPipeline": lambda: flux2(d.Flux2KleinPipeline, negative=True),
    "Flux2KleinKVPipeline": lambda: flux2(d.Flux2KleinKVPipeline),
    "Flux2KleinInpaintPipeline": lambda: flux2(
        d.Flux2KleinInpaintPipeline, negative=True, **again(mask_image=wide_mask())
    ),
    "ChromaPipeline": lambda: chroma(d.ChromaPipeline),
    "ChromaImg2ImgPipeline": lambda: chroma(d.ChromaImg2ImgPipeline, **again()),
    "ChromaInpaintPipeline": lambda: chroma(d.ChromaInpaintPipeline, **again(mask_image=wide_mask())),
}

_UNPACKED = "it returns them unpacked and denormalised"
NO_LATENTS = dict.fromkeys(("Flux2KleinPipeline", "Flux2KleinKVPipeline", "Flux2KleinInpaintPipeline"), _UNPACKED)
