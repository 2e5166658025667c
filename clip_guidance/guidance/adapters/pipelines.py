"""What is known of each pipeline: its denoiser, and how its sample becomes an image.

Known classes are rows of one table, by family; a pipeline is found by the name of its class or of the nearest base
class. Any other pipeline with one of :data:`DENOISERS` can be guided by a reward on its latents.

A sample becomes an image in three moves (:mod:`.layouts`), each with a default that serves most families:

    unpack        the scheduler's sample to latents (B, C, h, w): undo Flux's patches, drop a frame axis
    denormalise   latents of unit variance to what the decoder reads, by the decoder's config
    decode        the decoder, to pixels (B, 3, H, W) in [-1, 1]
"""

from collections import ChainMap
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from clip_guidance.guidance.adapters import layouts, masks
from clip_guidance.guidance.adapters.adapter import Adapter
from clip_guidance.guidance.adapters.by_class import by_class, shortened
from clip_guidance.guidance.adapters.unsupported import LATENT_ONLY, NO_EXACT, UNSUPPORTED_PIPELINES
from clip_guidance.guidance.adapters.videos import HUNYUAN_CONCATENATED, VIDEO_FAMILIES

DENOISERS = ("unet", "transformer", "prior", "decoder")


UNET = Adapter("unet")
SCALED_UNET = Adapter("unet", denormalise=layouts.by_scale)
PIXELS = Adapter("unet", None, data_variance=0.25, denormalise=layouts.identity, decode=layouts.identity)
MOVQ = Adapter("unet", "movq", denormalise=layouts.identity, decode=layouts.unquantised_decode)
TRANSFORMER = Adapter("transformer")
SCALED = Adapter("transformer", denormalise=layouts.by_scale)
PACKED = Adapter("transformer", unpack=layouts.patches)
BATCH_NORMED = Adapter("transformer", unpack=layouts.patches, denormalise=layouts.by_batch_norm)
ONE_FRAME = Adapter("transformer", unpack=layouts.patches, decode=layouts.one_frame_decode)

#: Each row and the classes to which it applies.
_FAMILIES: list[tuple[Adapter, str]] = [
    (
        SCALED_UNET,
        "StableDiffusionPipeline StableDiffusionImg2ImgPipeline StableDiffusionInpaintPipeline "
        "StableDiffusionControlNetPipeline "
        "StableDiffusionControlNetImg2ImgPipeline StableDiffusionControlNetInpaintPipeline "
        "StableDiffusionControlNetXSPipeline StableDiffusionPAGPipeline StableDiffusionPAGImg2ImgPipeline "
        "StableDiffusionPAGInpaintPipeline StableDiffusionControlNetPAGPipeline "
        "StableDiffusionControlNetPAGInpaintPipeline StableDiffusionUpscalePipeline "
        "StableDiffusionLatentUpscalePipeline StableDiffusionInstructPix2PixPipeline "
        "StableDiffusionDepth2ImgPipeline StableDiffusionImageVariationPipeline StableDiffusionDiffEditPipeline "
        "StableDiffusionAttendAndExcitePipeline StableDiffusionSAGPipeline StableDiffusionGLIGENPipeline "
        "StableDiffusionGLIGENTextImagePipeline StableDiffusionAdapterPipeline StableDiffusionModelEditingPipeline "
        "StableDiffusionPipelineSafe SemanticStableDiffusionPipeline LEditsPPPipelineStableDiffusion "
        "StableUnCLIPPipeline StableUnCLIPImg2ImgPipeline LatentConsistencyModelPipeline "
        "LatentConsistencyModelImg2ImgPipeline CycleDiffusionPipeline AltDiffusionPipeline "
        "AltDiffusionImg2ImgPipeline BlipDiffusionPipeline BlipDiffusionControlNetPipeline",
    ),
    (
        replace(SCALED_UNET, made_anew=partial(masks.over_latents, repainted=0.0)),
        "StableDiffusionInpaintPipelineLegacy PaintByExamplePipeline",
    ),
    (
        SCALED_UNET,
        "StableDiffusionXLControlNetInpaintPipeline StableDiffusionXLControlNetUnionInpaintPipeline "
        "StableDiffusionXLControlNetXSPipeline StableDiffusionXLAdapterPipeline LEditsPPPipelineStableDiffusionXL "
        "KolorsPipeline KolorsImg2ImgPipeline KolorsPAGPipeline",
    ),
    (
        UNET,
        "StableDiffusionXLPipeline StableDiffusionXLImg2ImgPipeline StableDiffusionXLInpaintPipeline "
        "StableDiffusionXLInstructPix2PixPipeline StableDiffusionXLControlNetPipeline "
        "StableDiffusionXLControlNetImg2ImgPipeline StableDiffusionXLControlNetUnionPipeline "
        "StableDiffusionXLControlNetUnionImg2ImgPipeline StableDiffusionXLPAGPipeline "
        "StableDiffusionXLPAGImg2ImgPipeline StableDiffusionXLPAGInpaintPipeline "
        "StableDiffusionXLControlNetPAGPipeline StableDiffusionXLControlNetPAGImg2ImgPipeline "
        "StableDiffusionXLModularPipeline DreamLitePipeline DreamLiteMobilePipeline",
    ),
    (
        PIXELS,
        "DDIMPipeline DDPMPipeline PNDMPipeline ConsistencyModelPipeline IFPipeline IFImg2ImgPipeline "
        "IFSuperResolutionPipeline IFImg2ImgSuperResolutionPipeline",
    ),
    (
        replace(PIXELS, made_anew=partial(masks.over_latents, name="mask_image")),
        "IFInpaintingPipeline IFInpaintingSuperResolutionPipeline",
    ),
    (
        MOVQ,
        "KandinskyPipeline KandinskyImg2ImgPipeline KandinskyV22Pipeline KandinskyV22Img2ImgPipeline "
        "KandinskyV22ControlnetPipeline "
        "KandinskyV22ControlnetImg2ImgPipeline Kandinsky3Pipeline Kandinsky3Img2ImgPipeline",
    ),
    (
        replace(MOVQ, made_anew=partial(masks.over_latents, name="mask_image", repainted=0.0)),
        "KandinskyInpaintPipeline KandinskyV22InpaintPipeline",
    ),
    (replace(PIXELS, denoiser="decoder", scheduler="decoder_scheduler"), "UnCLIPPipeline UnCLIPImageVariationPipeline"),
    (
        Adapter("decoder", "vqgan", denormalise=layouts.by_scale_factor, decode=layouts.unit_decode),
        "WuerstchenDecoderPipeline StableCascadeDecoderPipeline",
    ),
    (Adapter("unet", "vqvae", denormalise=layouts.by_scale), "LDMPipeline LDMTextToImagePipeline"),
    (Adapter("unet", "vqvae", denormalise=layouts.identity), "LDMSuperResolutionPipeline"),
    (Adapter("unet", denormalise=layouts.by_scale, decode=layouts.colour_decode), "StableDiffusionLDM3DPipeline"),
    (Adapter("unet", unpack=layouts.image_part, denormalise=layouts.by_scale), "UniDiffuserPipeline"),
    (
        Adapter("image_unet", denormalise=layouts.by_scale),
        "VersatileDiffusionTextToImagePipeline VersatileDiffusionImageVariationPipeline",
    ),
    (Adapter("transformer", denormalise=layouts.by_scale, doubled=True), "DiTPipeline"),
    (
        SCALED,
        "PixArtAlphaPipeline PixArtSigmaPipeline PixArtSigmaPAGPipeline HunyuanDiTPipeline "
        "HunyuanDiTControlNetPipeline HunyuanDiTPAGPipeline AuraFlowPipeline LuminaPipeline CogView3PlusPipeline "
        "CogView4Pipeline CogView4ControlPipeline OmniGenPipeline SanaPipeline SanaPAGPipeline "
        "SanaControlNetPipeline SanaSprintPipeline SanaSprintImg2ImgPipeline StableDiffusion3InpaintPipeline "
        "HunyuanImagePipeline",
    ),
    (
        TRANSFORMER,
        "StableDiffusion3Pipeline StableDiffusion3Img2ImgPipeline StableDiffusion3ControlNetPipeline "
        "StableDiffusion3ControlNetInpaintingPipeline StableDiffusion3PAGPipeline "
        "StableDiffusion3PAGImg2ImgPipeline Lumina2Pipeline HiDreamImagePipeline ZImagePipeline "
        "ZImageImg2ImgPipeline ZImageInpaintPipeline ZImageControlNetPipeline ZImageControlNetInpaintPipeline "
        "ZImageOmniPipeline PRXPipeline StableDiffusion3ModularPipeline ZImageModularPipeline",
    ),
    (
        PACKED,
        "FluxPipeline FluxImg2ImgPipeline FluxInpaintPipeline FluxControlNetPipeline FluxControlNetImg2ImgPipeline "
        "FluxControlNetInpaintPipeline FluxControlPipeline FluxControlImg2ImgPipeline FluxControlInpaintPipeline "
        "FluxKontextPipeline FluxKontextInpaintPipeline ChromaPipeline ChromaImg2ImgPipeline "
        "ChromaInpaintPipeline OvisImagePipeline LongCatImagePipeline FluxModularPipeline",
    ),
    (replace(PACKED, made_anew=masks.over_patches), "FluxFillPipeline"),
    (Adapter("transformer", unpack=layouts.bria_patches), "BriaPipeline"),
    (
        BATCH_NORMED,
        "Flux2Pipeline Flux2KleinPipeline Flux2KleinKVPipeline Flux2KleinInpaintPipeline Flux2ModularPipeline "
        "Flux3ModularPipeline",
    ),
    (
        ONE_FRAME,
        "QwenImagePipeline QwenImageImg2ImgPipeline QwenImageInpaintPipeline QwenImageControlNetPipeline "
        "QwenImageControlNetInpaintPipeline QwenImageEditPipeline QwenImageEditInpaintPipeline "
        "QwenImageEditPlusPipeline Krea2Pipeline NucleusMoEImagePipeline QwenImageModularPipeline "
        "QwenImageEditModularPipeline Krea2ModularPipeline",
    ),
    (
        Adapter("transformer", unpack=layouts.tokens, decode=layouts.one_frame_decode),
        "QwenImage21Pipeline QwenImage21ModularPipeline",
    ),
    (
        Adapter("transformer", unpack=layouts.channel_patches, denormalise=partial(layouts.by_batch_norm, eps=1e-5)),
        "ErnieImagePipeline ErnieImageModularPipeline",
    ),
    (Adapter("transformer", denormalise=layouts.by_batch_norm), "BriaFibo2Pipeline"),
    (
        Adapter("transformer", unpack=layouts.fibo_patches, decode=layouts.one_frame_decode),
        "BriaFiboPipeline BriaFiboEditPipeline",
    ),
    (
        Adapter(
            "transformer", unpack=layouts.squeezed, denormalise=layouts.by_statistics, decode=layouts.one_frame_decode
        ),
        "AnimaModularPipeline",
    ),
    (Adapter("transformer", denormalise=layouts.by_statistics), "GlmImagePipeline"),
    (
        Adapter("transformer", unpack=layouts.ideogram_patches, denormalise=layouts.by_patch_norm),
        "Ideogram4Pipeline Ideogram4ModularPipeline",
    ),
    (
        Adapter(
            "transformer", unpack=layouts.two_slices, denormalise=layouts.by_scale, decode=layouts.one_frame_decode
        ),
        "HunyuanImageRefinerPipeline",
    ),
    (
        Adapter("transformer", unpack=layouts.channels_last, denormalise=layouts.by_scale),
        "Kandinsky5T2IPipeline Kandinsky5I2IPipeline",
    ),
]
ADAPTERS = {name: adapter for adapter, names in [*_FAMILIES, *VIDEO_FAMILIES] for name in names.split()}


def find_adapter(pipe: Any) -> Adapter:
    """Find the adapter of a pipeline by its class; of an unknown class, by its denoiser.

    Raises:
        ValueError: The pipeline cannot be guided, or it is unknown and has none of :data:`DENOISERS`.
    """
    name = by_class(ChainMap[str, Any](UNSUPPORTED_PIPELINES, LATENT_ONLY, ADAPTERS), pipe)
    if name in UNSUPPORTED_PIPELINES:
        raise ValueError(f"{name} cannot be guided: {UNSUPPORTED_PIPELINES[name]}")
    if name == "HunyuanVideoImageToVideoPipeline" and pipe.transformer.config.image_condition_type == "latent_concat":
        return HUNYUAN_CONCATENATED
    if name in ADAPTERS:
        return ADAPTERS[name]
    for denoiser in DENOISERS:
        if isinstance(getattr(pipe, denoiser, None), nn.Module):
            return Adapter(denoiser, decoder=None, decode=None)
    raise ValueError(f"guidance needs a denoiser, a module named {' or '.join(DENOISERS)}; {describe(pipe)}")


def check_exact(pipe: Any) -> None:
    """Refuse a pipeline that mode "exact" cannot differentiate.

    Raises:
        ValueError: The pipeline is in :data:`~clip_guidance.guidance.adapters.unsupported.NO_EXACT`.
    """
    name = by_class(NO_EXACT, pipe)
    if name is not None:
        raise ValueError(f"mode='exact' cannot differentiate {name}: {NO_EXACT[name]}. Use mode='x0'")


def describe(pipe: Any) -> str:
    """Say what a pipeline holds, for error messages."""
    held = getattr(pipe, "components", None) or getattr(pipe, "__dict__", {})
    names = ", ".join(sorted(name for name in held if not name.startswith("_"))) or "nothing"
    return f"{shortened(type(pipe).__name__)} holds {shortened(names, 120)}"
