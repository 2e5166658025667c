"""Pipelines whose samples are pixels; they give their images in [0, 1] as arrays alone."""

import diffusers as d
import torch
from helpers.pipelines import parts
from helpers.pipelines.parts import awaken, build, image, mask, texts

ARRAYS = {"output_type": "np"}


def pixels(cls, scheduler, **inputs):
    return build(cls, unet=parts.plain_unet(), scheduler=scheduler), parts.sized(cls, **{**ARRAYS, **inputs})


def deep_floyd(cls, variance="learned_range", channels=3, **inputs):
    """Its UNet predicts a variance beside the noise, which its pipeline hands on to a scheduler that wants it."""
    embedding = "timestep" if channels > 3 else None
    unet = parts.unet(in_channels=channels, out_channels=6, sample_size=parts.SIDE, class_embed_type=embedding)
    noising = {"image_noising_scheduler": d.DDPMScheduler()} if channels > 3 else {}
    scheduler = d.DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type=variance)
    pipe = build(cls, unet=awaken(unet), scheduler=scheduler, requires_safety_checker=False, **noising)
    return pipe, parts.sized(cls, **texts(), **ARRAYS, **inputs)


def whole():
    """A mask of all pixels: the others' are put back after the last step, where no test sees it."""
    return torch.ones_like(mask())


def low(**inputs):
    return {"image": image(8, seed=6), "noise_level": 100, **inputs}


PIPELINES = parts.seeded(
    {
        "DDPMPipeline": lambda: pixels(d.DDPMPipeline, d.DDPMScheduler()),
        "DDIMPipeline": lambda: pixels(d.DDIMPipeline, d.DDIMScheduler(clip_sample=False)),
        "PNDMPipeline": lambda: pixels(d.PNDMPipeline, d.PNDMScheduler(skip_prk_steps=True)),
        "ConsistencyModelPipeline": lambda: pixels(
            d.ConsistencyModelPipeline, d.CMStochasticIterativeScheduler(), output_type="pt"
        ),
        "IFPipeline": lambda: deep_floyd(d.IFPipeline),
        "IFPipeline + fixed variance": lambda: deep_floyd(d.IFPipeline, variance="fixed_small"),
        "IFImg2ImgPipeline": lambda: deep_floyd(d.IFImg2ImgPipeline, image=image(), strength=0.8),
        "IFInpaintingPipeline": lambda: deep_floyd(
            d.IFInpaintingPipeline, strength=0.8, image=image(), mask_image=whole()
        ),
        "IFSuperResolutionPipeline": lambda: deep_floyd(d.IFSuperResolutionPipeline, channels=6, **low()),
        "IFImg2ImgSuperResolutionPipeline": lambda: deep_floyd(
            d.IFImg2ImgSuperResolutionPipeline, channels=6, **low(original_image=image())
        ),
        "IFInpaintingSuperResolutionPipeline": lambda: deep_floyd(
            d.IFInpaintingSuperResolutionPipeline, channels=6, **low(original_image=image(), mask_image=whole())
        ),
    }
)

#: Why a pipeline's latents cannot be asked for by ``output_type="latent"``.
NO_LATENTS = dict.fromkeys(PIPELINES, "it has no such output")
