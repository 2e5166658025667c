"""Stable Diffusion 1 and 2 and the pipelines of their layout, with what is plugged into them."""

import inspect

import diffusers as d
import pytest
from diffusers.pipelines.deprecated.blip_diffusion import BlipImageProcessor
from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder
from diffusers.pipelines.stable_diffusion import CLIPImageProjection, StableUnCLIPImageNormalizer
from helpers.pipelines import parts
from helpers.pipelines.parts import SIDE, awaken, build, embeds, image, mask, pil_image, pil_mask, texts

FAST = d.EulerDiscreteScheduler
PROMPT = {"prompt": "a cat"}  # for those that take no embeddings


def sd(cls, config=None, text=None, scheduler=None, vae=None, pieces=None, **inputs):
    """A pipeline with a UNet of ``config`` and other ``pieces``."""
    held = {
        "unet": awaken(parts.unet(**(config or {}))),
        "vae": vae or parts.vae(shift_factor=0.1),  # which these pipelines pass over
        "scheduler": scheduler or parts.scheduler(),
        "text_encoder": parts.clip_text(),
        "tokenizer": parts.clip_tokenizer(),
        "requires_safety_checker": False,
    }
    wanted = inspect.signature(cls.__init__).parameters
    pipe = build(cls, **{name: value for name, value in held.items() if name in wanted}, **(pieces or {}))
    return pipe, parts.sized(cls, **(texts() if text is None else text), **inputs)


def again(**inputs):
    return {"image": image(), "strength": 0.8, **inputs}


def inpaint(**inputs):
    return again(mask_image=mask(), **inputs)


def controlled(cls, config=None, **inputs):
    return sd(cls, config, pieces={"controlnet": parts.controlnet()}, **inputs)


def control(**inputs):
    return {"control_image": image(seed=4), **inputs}


def with_ip_adapter(cls=d.StableDiffusionPipeline, **inputs):
    pipe, inputs = sd(cls, **inputs)
    return pipe, inputs | parts.ip_adapter(pipe.unet)


def with_lora():
    peft = pytest.importorskip("peft", reason="diffusers loads LoRA weights through peft")
    pipe, inputs = sd(d.StableDiffusionPipeline)
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    return pipe, inputs


def latent_consistency(cls, **inputs):
    text = {"prompt_embeds": embeds(1, 5, parts.WIDTH), "original_inference_steps": 20}
    return sd(cls, {"time_cond_proj_dim": 8}, text, parts.scheduler(d.LCMScheduler), **inputs)


def upscale():
    return sd(
        d.StableDiffusionUpscalePipeline,
        {"in_channels": 7, "num_class_embeds": 1000},
        vae=parts.vae(blocks=3, scale=0.08333),
        scheduler=parts.scheduler(prediction_type="v_prediction"),
        pieces={"low_res_scheduler": parts.scheduler(d.DDPMScheduler)},
        image=image(8),
    )


def latent_upscale():
    return sd(
        d.StableDiffusionLatentUpscalePipeline,
        {"in_channels": 8, "out_channels": 5, "time_cond_proj_dim": 128 + parts.WIDTH},
        texts(pooled=parts.WIDTH),
        parts.scheduler(FAST, prediction_type="sample"),
        image=embeds(1, 4, 4, 4),
    )


def diff_edit():
    return sd(
        d.StableDiffusionDiffEditPipeline,
        pieces={"inverse_scheduler": parts.scheduler(d.DDIMInverseScheduler)},
        mask_image=mask(8)[0],
        image_latents=embeds(1, 3, 4, 8, 8),
        inpaint_strength=1.0,
    )


def gligen(cls, kind, **inputs):
    pieces = {}
    if cls is d.StableDiffusionGLIGENTextImagePipeline:
        inputs["gligen_images"] = [pil_image()]
        pieces = {"processor": parts.clip_image_processor(), "image_encoder": parts.clip_vision()}
        pieces["image_project"] = CLIPImageProjection(hidden_size=parts.WIDTH)
    boxes = {"gligen_phrases": ["a dog"], "gligen_boxes": [[0.1, 0.1, 0.6, 0.7]]}
    boxes["gligen_scheduled_sampling_beta"] = 1.0  # of the steps
    return sd(cls, {"attention_type": kind}, pieces=pieces, **boxes, **inputs)


def ledits():
    """It edits the image that it was made to invert before."""
    text = {"editing_prompt": ["a dog"], "use_intersect_mask": False}
    scheduler = parts.scheduler(d.DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++", steps_offset=1)
    pipe, inputs = sd(d.LEditsPPPipelineStableDiffusion, text=text, scheduler=scheduler)
    pipe.invert(pil_image(32), num_inversion_steps=4, skip=0.2, generator=parts.generator())
    del inputs["num_inference_steps"]
    return pipe, inputs


def unclip(cls, **inputs):
    """Its prompt's embeddings stand beside those of an image, with noise on them."""
    pieces = {
        "image_normalizer": StableUnCLIPImageNormalizer(parts.WIDTH),
        "image_noising_scheduler": parts.scheduler(d.DDPMScheduler),
        "image_encoder": parts.clip_vision(),
    }
    if cls is d.StableUnCLIPPipeline:
        prior = {"num_attention_heads": 2, "attention_head_dim": 4, "embedding_dim": parts.WIDTH, "num_layers": 1}
        del pieces["image_encoder"]
        pieces |= {
            "prior": awaken(d.PriorTransformer(num_embeddings=12, **prior)),
            "prior_scheduler": d.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample"),
            "prior_text_encoder": parts.clip_text(projection=True),
            "prior_tokenizer": parts.clip_tokenizer(),
        }
        inputs |= {**PROMPT, "prior_num_inference_steps": 2}
    config = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * parts.WIDTH}
    return sd(cls, config, {} if "prompt" in inputs else None, pieces=pieces, **inputs)


def image_variation():
    pieces = {"image_encoder": parts.clip_vision(), "feature_extractor": parts.clip_image_processor()}
    return sd(d.StableDiffusionImageVariationPipeline, text={}, pieces=pieces, image=pil_image())


def paint_by_example():
    pieces = {
        "image_encoder": PaintByExampleImageEncoder(parts.clip_vision_config(), proj_size=parts.WIDTH).eval(),
        "feature_extractor": parts.clip_image_processor(),
    }
    images = {"image": pil_image(), "mask_image": pil_mask(), "example_image": pil_image(seed=3)}
    return sd(d.PaintByExamplePipeline, {"in_channels": 9}, {}, pieces=pieces, **images)


def blip(cls, pieces=None, **inputs):
    """Its encoders of a subject are replaced."""
    text = {"prompt": "on grass", "source_subject_category": "cat", "target_subject_category": "cat"}
    text |= {"reference_image": pil_image(), "guidance_scale": 1.0}
    pieces = {"image_processor": BlipImageProcessor(size={"height": SIDE, "width": SIDE}), **(pieces or {})}
    pipe, inputs = sd(cls, text=text, pieces=pieces, **inputs)
    pipe.get_query_embeddings = lambda image, subject: None
    pipe.encode_prompt = lambda query, prompt, device: embeds(1, 5, parts.WIDTH)
    return pipe, inputs


PIPELINES = parts.seeded(
    {
        "StableDiffusionPipeline": lambda: sd(d.StableDiffusionPipeline),
        "StableDiffusionPipeline + IP-Adapter": with_ip_adapter,
        "StableDiffusionPipeline + LoRA": with_lora,
        "StableDiffusionPipeline + rescaled v": lambda: sd(
            d.StableDiffusionPipeline,
            scheduler=parts.scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
            guidance_rescale=0.7,
        ),
        "StableDiffusionImg2ImgPipeline": lambda: sd(d.StableDiffusionImg2ImgPipeline, **again()),
        "StableDiffusionInpaintPipeline": lambda: sd(d.StableDiffusionInpaintPipeline, **inpaint()),
        "StableDiffusionInpaintPipeline + 9 channels": lambda: sd(
            d.StableDiffusionInpaintPipeline, {"in_channels": 9}, **inpaint()
        ),
        "StableDiffusionInpaintPipelineLegacy": lambda: sd(
            d.StableDiffusionInpaintPipelineLegacy, **again(image=pil_image(), mask_image=pil_mask())
        ),
        "StableDiffusionControlNetPipeline": lambda: controlled(d.StableDiffusionControlNetPipeline, image=image()),
        "StableDiffusionControlNetPipeline + guess": lambda: controlled(
            d.StableDiffusionControlNetPipeline, image=image(), guess_mode=True
        ),
        "StableDiffusionControlNetImg2ImgPipeline": lambda: controlled(
            d.StableDiffusionControlNetImg2ImgPipeline, **again(), **control()
        ),
        "StableDiffusionControlNetInpaintPipeline": lambda: controlled(
            d.StableDiffusionControlNetInpaintPipeline, **inpaint(), **control()
        ),
        "StableDiffusionControlNetInpaintPipeline + 9 channels": lambda: controlled(
            d.StableDiffusionControlNetInpaintPipeline, {"in_channels": 9}, **inpaint(), **control()
        ),
        "StableDiffusionPAGPipeline": lambda: sd(d.StableDiffusionPAGPipeline),
        "StableDiffusionPAGImg2ImgPipeline": lambda: sd(d.StableDiffusionPAGImg2ImgPipeline, **again()),
        "StableDiffusionPAGInpaintPipeline": lambda: sd(d.StableDiffusionPAGInpaintPipeline, **inpaint()),
        "StableDiffusionControlNetPAGPipeline": lambda: controlled(
            d.StableDiffusionControlNetPAGPipeline, image=image()
        ),
        "StableDiffusionControlNetPAGInpaintPipeline": lambda: controlled(
            d.StableDiffusionControlNetPAGInpaintPipeline, **inpaint(), **control()
        ),
        "StableDiffusionUpscalePipeline": upscale,
        "StableDiffusionLatentUpscalePipeline": latent_upscale,
        "StableDiffusionInstructPix2PixPipeline": lambda: sd(
            d.StableDiffusionInstructPix2PixPipeline, {"in_channels": 8}, image=image()
        ),
        "StableDiffusionDepth2ImgPipeline": lambda: sd(
            d.StableDiffusionDepth2ImgPipeline, {"in_channels": 5}, **again(depth_map=embeds(1, 8, 8))
        ),
        "StableDiffusionImageVariationPipeline": image_variation,
        "StableDiffusionDiffEditPipeline": diff_edit,
        "StableDiffusionAttendAndExcitePipeline": lambda: sd(
            d.StableDiffusionAttendAndExcitePipeline, prompt=None, token_indices=[1, 2], attn_res=(4, 4)
        ),
        "StableDiffusionSAGPipeline": lambda: sd(d.StableDiffusionSAGPipeline),
        "StableDiffusionGLIGENPipeline": lambda: gligen(d.StableDiffusionGLIGENPipeline, "gated"),
        "StableDiffusionGLIGENTextImagePipeline": lambda: gligen(
            d.StableDiffusionGLIGENTextImagePipeline, "gated-text-image"
        ),
        "StableDiffusionModelEditingPipeline": lambda: sd(d.StableDiffusionModelEditingPipeline),
        "StableDiffusionPipelineSafe": lambda: sd(d.StableDiffusionPipelineSafe, text=PROMPT),
        "SemanticStableDiffusionPipeline": lambda: sd(
            d.SemanticStableDiffusionPipeline, text=PROMPT, editing_prompt=["a dog"], edit_warmup_steps=1
        ),
        "LEditsPPPipelineStableDiffusion": ledits,
        "StableUnCLIPPipeline": lambda: unclip(d.StableUnCLIPPipeline),
        "StableUnCLIPImg2ImgPipeline": lambda: unclip(
            d.StableUnCLIPImg2ImgPipeline, image_embeds=embeds(1, parts.WIDTH)
        ),
        "LatentConsistencyModelPipeline": lambda: latent_consistency(d.LatentConsistencyModelPipeline),
        "LatentConsistencyModelImg2ImgPipeline": lambda: latent_consistency(
            d.LatentConsistencyModelImg2ImgPipeline, **again()
        ),
        "CycleDiffusionPipeline": lambda: sd(
            d.CycleDiffusionPipeline,
            text=PROMPT,
            scheduler=parts.scheduler(set_alpha_to_one=False),
            source_prompt="a dog",
            eta=0.5,
            **again(),
        ),
        "PaintByExamplePipeline": paint_by_example,
        "AltDiffusionPipeline": lambda: sd(d.AltDiffusionPipeline),
        "AltDiffusionImg2ImgPipeline": lambda: sd(d.AltDiffusionImg2ImgPipeline, **again()),
        "StableDiffusionAdapterPipeline": lambda: sd(
            d.StableDiffusionAdapterPipeline,
            parts.T2I_BLOCKS,
            pieces={"adapter": parts.t2i_adapter()},
            image=image(),
        ),
        "StableDiffusionControlNetXSPipeline": lambda: sd(
            d.StableDiffusionControlNetXSPipeline,
            {"layers_per_block": 2},
            pieces={"controlnet": parts.controlnet_xs()},
            image=image(),
        ),
        "BlipDiffusionPipeline": lambda: blip(d.BlipDiffusionPipeline),
        "BlipDiffusionControlNetPipeline": lambda: blip(
            d.BlipDiffusionControlNetPipeline,
            pieces={"controlnet": parts.controlnet()},
            condtioning_image=pil_image(seed=4),
        ),
    }
)

#: Why a pipeline's latents cannot be asked for by ``output_type="latent"``.
NO_LATENTS = dict.fromkeys(
    ("StableDiffusionPipelineSafe", "BlipDiffusionPipeline", "BlipDiffusionControlNetPipeline"), "it has no such output"
)

#: Why a pipeline cannot be guided in mode "exact".
NO_EXACT = {
    "StableDiffusionLatentUpscalePipeline": "it mixes the sample into the model output by itself",
    "CycleDiffusionPipeline": "its UNet reads another sample too",
}
