"""What is known about a pipeline: its denoiser, and how its sample becomes an image.

Known classes are rows of one table, by family; a class is found by its own name or that of its nearest base
class. Any other pipeline with one of :data:`DENOISERS` can be guided by a reward on its latents.

A sample becomes an image in three moves, each with a default that serves most families:

    unpack        the scheduler's sample to latents (B, C, h, w): undo Flux's patches, drop a frame axis
    denormalise   latents of unit variance to what the decoder reads, by the decoder's own config
    decode        the decoder, to pixels (B, 3, H, W) in [-1, 1]
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clip_guidance.guidance.adapters import layouts as unpack
from clip_guidance.guidance.adapters.size import Size
from clip_guidance.guidance.adapters.unsupported import LATENT_ONLY, NO_EXACT, UNSUPPORTED

DENOISERS = ("unet", "transformer", "prior", "decoder")


def same(pipe: Any, sample: Tensor, size: Size | None) -> Tensor:
    """The sample is its own latents."""
    return sample


def by_config(decoder: Any, latents: Tensor) -> Tensor:
    """Latents to the decoder's units: by mean and standard deviation of a channel, or by one scale and shift."""
    config = decoder.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        shape = (1, -1, *[1] * (latents.ndim - 2))
        mean, std = (torch.as_tensor(each).to(latents).view(shape) for each in (mean, std))
    else:
        mean, std = getattr(config, "shift_factor", None) or 0, 1
    return latents * std / (getattr(config, "scaling_factor", None) or 1) + mean


def vae_decode(decoder: Any, latents: Tensor) -> Tensor:
    """Any diffusers autoencoder."""
    return decoder.decode(latents, return_dict=False)[0]


@dataclass(frozen=True)
class Adapter:
    """One row of the table.

    Attributes:
        denoiser: Name of the pipeline's attribute that predicts the noise.
        decoder: Name of the pipeline's attribute that makes the image; None if samples are pixels already, or
            if it is not known how they become pixels.
        data_variance: Default variance of an element of the clean sample: 1 for normalised latents, 1/4 for
            pixels in [-1, 1].
        unpack: (pipe, sample, size) -> latents (B, C, h, w); ``size`` is None where the pipeline names none.
        denormalise: (decoder, latents) -> what the decoder reads.
        decode: (decoder, latents) -> pixels (B, 3, H, W) in [-1, 1]; None if unknown.
        doubled: Whether the pipeline hands the sample to ``scheduler.step`` twice over, one copy for each side of
            classifier-free guidance.
        repainted: Value of the pipeline's variable ``mask`` where the image is made anew; None where a variable of
            that name is something else.
    """

    denoiser: str
    decoder: str | None = "vae"
    data_variance: float = 1.0
    unpack: Callable[[Any, Tensor, Size | None], Tensor] = same
    denormalise: Callable[[Any, Tensor], Tensor] = by_config
    decode: Callable[[Any, Tensor], Tensor] | None = vae_decode
    doubled: bool = False
    repainted: float | None = 1.0


UNET = Adapter("unet")
SCALED_UNET = Adapter("unet", denormalise=unpack.by_scale)
FRAMES = Adapter("unet", denormalise=unpack.by_scale, decode=unpack.frames_decode)
PIXELS = Adapter("unet", None, data_variance=0.25, denormalise=unpack.as_it_is, decode=unpack.as_it_is)
MOVQ = Adapter("unet", "movq", denormalise=unpack.as_it_is, decode=unpack.unquantised_decode)
TRANSFORMER = Adapter("transformer")
SCALED = Adapter("transformer", denormalise=unpack.by_scale)
PACKED = Adapter("transformer", unpack=unpack.patches)
BATCH_NORMED = Adapter("transformer", unpack=unpack.patches, denormalise=unpack.by_batch_norm)
ONE_FRAME = Adapter("transformer", unpack=unpack.patches, decode=unpack.one_frame_decode)

#: Each row and the classes that it serves.
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
    (replace(SCALED_UNET, repainted=0.0), "StableDiffusionInpaintPipelineLegacy PaintByExamplePipeline"),
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
        "IFInpaintingPipeline IFSuperResolutionPipeline IFImg2ImgSuperResolutionPipeline "
        "IFInpaintingSuperResolutionPipeline",
    ),
    (
        MOVQ,
        "KandinskyPipeline KandinskyImg2ImgPipeline KandinskyInpaintPipeline KandinskyV22Pipeline "
        "KandinskyV22Img2ImgPipeline KandinskyV22InpaintPipeline KandinskyV22ControlnetPipeline "
        "KandinskyV22ControlnetImg2ImgPipeline Kandinsky3Pipeline Kandinsky3Img2ImgPipeline",
    ),
    (
        FRAMES,
        "AnimateDiffPipeline AnimateDiffSDXLPipeline AnimateDiffPAGPipeline AnimateDiffControlNetPipeline "
        "AnimateDiffSparseControlNetPipeline AnimateDiffVideoToVideoPipeline "
        "AnimateDiffVideoToVideoControlNetPipeline I2VGenXLPipeline TextToVideoSDPipeline "
        "VideoToVideoSDPipeline",
    ),
    (replace(FRAMES, repainted=None), "PIAPipeline"),
    (
        Adapter("unet", unpack=unpack.frames_first, denormalise=unpack.by_scale, decode=unpack.temporal_decode),
        "StableVideoDiffusionPipeline",
    ),
    (
        Adapter("decoder", "vqgan", denormalise=unpack.by_scale_factor, decode=unpack.unit_decode),
        "WuerstchenDecoderPipeline StableCascadeDecoderPipeline",
    ),
    (Adapter("unet", "vqvae", denormalise=unpack.by_scale), "LDMPipeline LDMTextToImagePipeline"),
    (Adapter("unet", "vqvae", denormalise=unpack.as_it_is), "LDMSuperResolutionPipeline"),
    (Adapter("unet", denormalise=unpack.by_scale, decode=unpack.colour_decode), "StableDiffusionLDM3DPipeline"),
    (Adapter("unet", unpack=unpack.image_part, denormalise=unpack.by_scale), "UniDiffuserPipeline"),
    (
        Adapter("image_unet", denormalise=unpack.by_scale),
        "VersatileDiffusionTextToImagePipeline VersatileDiffusionImageVariationPipeline",
    ),
    (Adapter("transformer", denormalise=unpack.by_scale, doubled=True), "DiTPipeline"),
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
        "FluxFillPipeline FluxKontextPipeline FluxKontextInpaintPipeline ChromaPipeline ChromaImg2ImgPipeline "
        "ChromaInpaintPipeline OvisImagePipeline LongCatImagePipeline FluxModularPipeline",
    ),
    (Adapter("transformer", unpack=unpack.bria_patches), "BriaPipeline"),
    (
        BATCH_NORMED,
        "Flux2Pipeline Flux2KleinPipeline Flux2KleinKVPipeline Flux2KleinInpaintPipeline Flux2ModularPipeline",
    ),
    (
        ONE_FRAME,
        "QwenImagePipeline QwenImageImg2ImgPipeline QwenImageInpaintPipeline QwenImageControlNetPipeline "
        "QwenImageControlNetInpaintPipeline QwenImageEditPipeline QwenImageEditInpaintPipeline "
        "QwenImageEditPlusPipeline Krea2Pipeline NucleusMoEImagePipeline QwenImageModularPipeline "
        "Krea2ModularPipeline",
    ),
    (
        Adapter("transformer", unpack=unpack.tokens, decode=unpack.one_frame_decode),
        "QwenImage21Pipeline QwenImage21ModularPipeline",
    ),
    (
        Adapter("transformer", unpack=unpack.shuffled, denormalise=partial(unpack.by_batch_norm, eps=1e-5)),
        "ErnieImagePipeline ErnieImageModularPipeline",
    ),
    (Adapter("transformer", denormalise=unpack.by_batch_norm), "BriaFibo2Pipeline"),
    (
        Adapter("transformer", unpack=unpack.fibo_patches, decode=unpack.one_frame_decode),
        "BriaFiboPipeline BriaFiboEditPipeline",
    ),
    (
        Adapter("transformer", denormalise=unpack.by_statistics),
        "GlmImagePipeline WanPipeline WanVideoToVideoPipeline WanImageToVideoPipeline SkyReelsV2Pipeline "
        "WanModularPipeline",
    ),
    (
        Adapter("transformer", unpack=unpack.channels_last, denormalise=unpack.by_scale),
        "Kandinsky5T2IPipeline Kandinsky5I2IPipeline",
    ),
]
ADAPTERS = {name: adapter for adapter, names in _FAMILIES for name in names.split()}


def find_adapter(pipe: Any) -> Adapter:
    """The adapter of a pipeline, by its class or, for an unknown one, by the denoiser it holds.

    Raises:
        ValueError: The pipeline is known not to work, or unknown with none of :data:`DENOISERS`.
    """
    for cls in type(pipe).__mro__:
        if cls.__name__ in UNSUPPORTED:
            raise ValueError(f"{cls.__name__} cannot be guided: {UNSUPPORTED[cls.__name__]}")
        if cls.__name__ in LATENT_ONLY:
            break
        if cls.__name__ in ADAPTERS:
            return ADAPTERS[cls.__name__]
    for name in DENOISERS:
        if isinstance(getattr(pipe, name, None), nn.Module):
            return Adapter(name, decoder=None, decode=None)
    raise ValueError(f"guidance needs a denoiser, a module named {' or '.join(DENOISERS)}; {describe(pipe)}")


def check_exact(pipe: Any) -> None:
    """Refuse a pipeline that mode "exact" cannot differentiate.

    Raises:
        ValueError: For the reason in :data:`~clip_guidance.guidance.adapters.unsupported.NO_EXACT`.
    """
    for cls in type(pipe).__mro__:
        if cls.__name__ in NO_EXACT:
            raise ValueError(
                f"mode='exact' cannot differentiate {cls.__name__}: {NO_EXACT[cls.__name__]}. Use mode='x0'"
            )


def describe(pipe: Any) -> str:
    """What was found instead, for error messages."""
    held = getattr(pipe, "components", None) or vars(pipe)
    names = ", ".join(sorted(name for name in held if not name.startswith("_"))) or "nothing"
    return f"{type(pipe).__name__} holds {names}"
