"""Pipelines whose samples are pixels; they give their images in [0, 1] as arrays alone."""

from types import SimpleNamespace

import diffusers as d
import torch
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from helpers.pipelines import parts
from helpers.pipelines.parts import awaken, build, image, mask, texts
from torch import nn

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


class Kept(nn.Module):
    """In place of a network for super-resolution: predicts the image that it is given beside the noise."""

    config, device, dtype = SimpleNamespace(in_channels=6, sample_size=8), torch.device("cpu"), torch.float32

    def forward(self, sample, timestep):
        return SimpleNamespace(sample=sample[:, 3:])


def unclip(cls, **inputs):
    """Its decoder makes pixels, which two more networks enlarge; here they keep them as they are."""
    text = parts.clip_text(projection=True)
    decoder = parts.unet(
        in_channels=3,
        out_channels=6,
        sample_size=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )
    unclip_scheduler = d.UnCLIPScheduler(variance_type="learned_range", prediction_type="epsilon")
    enlarging = d.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample")
    prior = {"image_encoder": parts.clip_vision()}
    if cls is d.UnCLIPPipeline:
        network = d.PriorTransformer(
            num_attention_heads=2, attention_head_dim=4, embedding_dim=8, num_layers=1, num_embeddings=12
        )
        scheduler = d.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample")
        prior = {"prior": awaken(network), "prior_scheduler": scheduler}
        inputs["prior_num_inference_steps"] = 2
    pipe = build(
        cls,
        decoder=awaken(decoder),
        text_encoder=text,
        tokenizer=parts.clip_tokenizer(),
        text_proj=awaken(
            UnCLIPTextProjModel(
                clip_extra_context_tokens=3, clip_embeddings_dim=8, time_embed_dim=32, cross_attention_dim=8
            )
        ),
        super_res_first=Kept(),
        super_res_last=Kept(),
        decoder_scheduler=unclip_scheduler,
        super_res_scheduler=enlarging,
        **prior,
    )
    steps = {"decoder_num_inference_steps": 3, "super_res_num_inference_steps": 2}
    return pipe, {"generator": parts.generator(), **ARRAYS, **steps, **inputs}


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
        "UnCLIPPipeline": lambda: unclip(d.UnCLIPPipeline, prompt="a cat"),
        "UnCLIPImageVariationPipeline": lambda: unclip(
            d.UnCLIPImageVariationPipeline, image_embeddings=parts.embeds(1, 8)
        ),
    }
)

LAST_STEP = dict.fromkeys(("UnCLIPPipeline", "UnCLIPImageVariationPipeline"), "its decoder has a scheduler of its own")
TOLERANCES = dict.fromkeys(LAST_STEP, 1e-3)  # their scheduler rounds its last step

#: Why a pipeline's latents cannot be asked for by ``output_type="latent"``.
NO_LATENTS = dict.fromkeys(PIPELINES, "it has no such output")
