"""Make the networks of ``guidance_cost.py``: real sizes, random weights, same cost.

The configs are those of ``stable-diffusion-v1-5``, ``stable-diffusion-xl-base-1.0``, ``taesd`` and OpenAI's CLIPs on
the hub, written out, so that nothing is downloaded. ``small`` is Stable Diffusion 1.5 with a quarter of all widths and
heads, so that a head is as wide as there, at half the side; its tiny autoencoder and its guide are as much narrower.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

import clip_guidance as cg
from clip_guidance.clip import CLIP
from clip_guidance.clip.image_processor import ImageProcessor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def transformer(width: int, layers: int, heads: int, **options: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**sizes, "intermediate_size": 4 * width, **options}


CLIPS: dict[str, dict[str, Any]] = {
    "b32": {
        "vision_config": transformer(768, 12, 12, patch_size=32, image_size=224),
        "text_config": transformer(512, 12, 8),
        "projection_dim": 512,
    },
    "b16": {
        "vision_config": transformer(768, 12, 12, patch_size=16, image_size=224),
        "text_config": transformer(512, 12, 8),
        "projection_dim": 512,
    },
    "l14": {
        "vision_config": transformer(1024, 24, 16, patch_size=14, image_size=224),
        "text_config": transformer(768, 12, 12),
        "projection_dim": 768,
    },
    "small": {
        "vision_config": transformer(192, 12, 3, patch_size=32, image_size=224),
        "text_config": transformer(128, 12, 2),
        "projection_dim": 128,
    },
    "tiny": {
        "vision_config": transformer(32, 2, 2, patch_size=8, image_size=32),
        "text_config": transformer(32, 2, 2),
        "projection_dim": 16,
    },
}


@dataclass(frozen=True)
class Architecture:
    """Hold one size: what the networks' configs say where they differ from the classes' defaults."""

    side: int  # of the image, in pixels
    unet: dict[str, Any]
    vae_channels: tuple[int, ...]
    text_encoder: dict[str, Any]
    clip: str = "b32"  # the guide, unless another is asked for
    groups: int = 32  # of the group norms
    text_encoder_2: dict[str, Any] | None = None  # SDXL has one
    tiny_channels: int = 64  # of the tiny autoencoder


SD15 = Architecture(
    side=512,
    unet={"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8},
    vae_channels=(128, 256, 512, 512),
    text_encoder=transformer(768, 12, 12, projection_dim=768),
)
ARCHITECTURES = {
    "sd15": SD15,
    "small": Architecture(
        side=256,
        unet={"block_out_channels": (80, 160, 320, 320), "cross_attention_dim": 192, "attention_head_dim": 2},
        vae_channels=(32, 64, 128, 128),
        text_encoder=transformer(192, 12, 3),
        clip="small",
        groups=16,
        tiny_channels=16,
    ),
    "tiny": Architecture(
        side=64,
        unet={
            "block_out_channels": (16, 32),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
        },
        vae_channels=(8, 8, 16, 16),
        text_encoder=transformer(32, 2, 2),
        clip="tiny",
        groups=8,
        tiny_channels=8,
    ),
    "sdxl": Architecture(
        side=1024,
        unet={
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": [1, 2, 10],
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        vae_channels=(128, 256, 512, 512),
        text_encoder=transformer(768, 12, 12, projection_dim=768),
        text_encoder_2=transformer(1280, 32, 20, projection_dim=1280, hidden_act="gelu"),
    ),
}


@dataclass(frozen=True)
class Components:
    """What both sides are given: the same networks, and the same guide in two classes."""

    pipe: Any  # stock StableDiffusionPipeline or StableDiffusionXLPipeline
    clip: cg.CLIP
    clip_model: CLIPModel  # the weights of ``clip``
    feature_extractor: CLIPImageProcessorPil
    side: int  # of the image, in pixels
    tiny_decoder: nn.Module | None  # of the latents' size; None where nobody made one


def make_components(size: str, side: int, clip: str, device: str, dtype: torch.dtype, seed: int) -> Components:
    """Make the networks of a size; ``side`` 0 and ``clip`` "" stand for the size's own."""
    torch.manual_seed(seed)
    if size == "emoji":
        return _packaged(side, device, dtype)
    architecture = ARCHITECTURES[size]
    architecture = replace(architecture, side=side or architecture.side, clip=clip or architecture.clip)
    clip_config = CLIPConfig(**CLIPS[architecture.clip])
    image_size = clip_config.vision_config.image_size
    clip_model = CLIPModel(clip_config).to(device, dtype).eval()
    own = CLIP.from_transformers(clip_model, letter_tokenizer(), ImageProcessor(image_size, CLIP_MEAN, CLIP_STD))
    extractor = _extractor(image_size, CLIP_MEAN, CLIP_STD)
    tiny = {f"{part}_block_out_channels": (architecture.tiny_channels,) * 4 for part in ("encoder", "decoder")}
    tiny_decoder = filled(AutoencoderTiny, device, dtype, **tiny)
    pipe = _pipeline(architecture, device, dtype)
    return Components(pipe, own.to(device).eval(), clip_model, extractor, architecture.side, tiny_decoder)


def _pipeline(architecture: Architecture, device: str, dtype: torch.dtype) -> Any:
    large = architecture.text_encoder_2 is not None
    levels = len(architecture.vae_channels)
    latent_side = architecture.side // 2 ** (levels - 1)
    vae = filled(
        AutoencoderKL,
        device,
        dtype,
        block_out_channels=architecture.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        norm_num_groups=architecture.groups,
        sample_size=architecture.side,
        scaling_factor=0.13025 if large else 0.18215,
        force_upcast=large,  # as in either's config on the hub
    )
    groups = {"norm_num_groups": architecture.groups, "sample_size": latent_side}
    unet = filled(UNet2DConditionModel, device, dtype, **groups, **architecture.unet)
    text_encoder = CLIPTextModel(CLIPTextConfig(**architecture.text_encoder)).to(device, dtype).eval()
    shared = {"vae": vae, "text_encoder": text_encoder, "tokenizer": letter_tokenizer(), "unet": unet}
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    if large:
        second = CLIPTextModelWithProjection(CLIPTextConfig(**architecture.text_encoder_2)).to(device, dtype).eval()
        scheduler = EulerDiscreteScheduler(**betas, timestep_spacing="leading")
        second_parts = {"text_encoder_2": second, "tokenizer_2": letter_tokenizer()}
        return StableDiffusionXLPipeline(**shared, **second_parts, scheduler=scheduler, add_watermarker=False)
    scheduler = DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False)
    unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**shared, scheduler=scheduler, **unused)


def filled(cls: type[nn.Module], device: str, dtype: torch.dtype, **config: Any) -> Any:
    """Make a network with weights from N(0, 0.02²); its own initialisation would take minutes."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = cls(**config)
    finally:
        torch.set_default_dtype(usual)
    model = model.to_empty(device=device).eval()
    norms = {id(m.weight) for m in model.modules() if isinstance(m, (nn.GroupNorm, nn.LayerNorm))}
    with torch.no_grad():
        for parameter in model.parameters():
            if id(parameter) in norms:
                parameter.fill_(1)
            elif parameter.ndim > 1:
                parameter.normal_(std=0.02)
            else:
                parameter.zero_()
    return model


def letter_tokenizer() -> CLIPTokenizer:
    """Make a tokenizer of letters, with special tokens where OpenAI's has them; it pads to 77."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*letters, *(letter + "</w>" for letter in letters)])}
    vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    return CLIPTokenizer(vocabulary, [], model_max_length=77)


def _packaged(side: int, device: str, dtype: torch.dtype) -> Components:
    """Load the packaged pipeline, with a transformers CLIP as small as its own as the guide."""
    pipe = cg.load_pipeline("emoji", device, dtype)
    side = side or pipe.unet.config.sample_size * pipe.vae_scale_factor
    tokens = pipe.text_encoder.config
    texts = {
        "vocab_size": tokens.vocab_size,
        "max_position_embeddings": tokens.max_position_embeddings,
        "eos_token_id": tokens.eos_token_id,
    }
    config = CLIPConfig(
        text_config=transformer(192, 3, 6, **texts),
        vision_config=transformer(192, 6, 6, patch_size=16, image_size=64),
        projection_dim=128,
    )
    clip_model = CLIPModel(config).to(device, dtype).eval()
    own = CLIP.from_transformers(clip_model, pipe.tokenizer, ImageProcessor(64, CLIP_MEAN, CLIP_STD))
    extractor = _extractor(64, CLIP_MEAN, CLIP_STD)
    return Components(pipe, own.to(device).eval(), clip_model, extractor, side, None)


def _extractor(side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> CLIPImageProcessorPil:
    crop = {"height": side, "width": side}
    size = {"shortest_edge": side}
    return CLIPImageProcessorPil(size=size, crop_size=crop, image_mean=list(mean), image_std=list(std))
