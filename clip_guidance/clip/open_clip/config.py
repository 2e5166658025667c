"""The settings of open_clip's models: which of them are ours, read and written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from clip_guidance.clip.config import CLIPConfig
from clip_guidance.clip.convert import check_equivalent
from clip_guidance.clip.hub import ModelError
from clip_guidance.towers import TransformerTextConfig, ViTConfig

# What a setting must be for the architecture to be ours; those that are not listed must be None.
_VISION_USUAL = {
    "timm_model_name": None, "ls_init_value": None, "attentional_pool": False, "no_ln_pre": False,
    "pos_embed_type": "learnable", "final_ln_after_pool": False, "pool_type": "tok", "qk_norm": False,
    "scaled_cosine_attn": False, "scale_heads": False, "scale_attn_inner": False, "scale_attn": False,
    "scale_fc": False,
}  # fmt: skip
_TEXT_USUAL = {
    "hf_model_name": None, "text_arch": "clip", "ls_init_value": None, "embed_cls": False, "no_causal_mask": False,
    "final_ln_after_pool": False, "proj_bias": False, "proj_type": "linear", "qk_norm": False,
    "scaled_cosine_attn": False, "scale_heads": False, "scale_attn_inner": False, "scale_attn": False,
    "scale_fc": False, "variable_text": False, "tokenizer_type": "",
}  # fmt: skip
# What is read here, and what acts only beside a setting above.
_MODEL_READ = {
    "embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "nonscalar_logit_scale",
}  # fmt: skip
_VISION_READ = {
    "width", "layers", "head_width", "mlp_ratio", "patch_size", "image_size", "norm_kwargs", "output_tokens",
    "patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained", "timm_pool", "timm_proj",
    "timm_proj_bias", "timm_drop", "timm_drop_path",
}  # fmt: skip
_TEXT_READ = {
    "width", "layers", "heads", "mlp_ratio", "context_length", "vocab_size", "norm_kwargs", "output_tokens",
    "pool_type", "eos_id", "pad_id", "bos_id", "hf_tokenizer_name", "tiktoken_name", "hf_model_pretrained",
    "hf_proj_type", "hf_pooler_type",
}  # fmt: skip
ONLY_THERE = (
    "which only the open_clip library builds: CLIP.from_pretrained takes it where that is installed, "
    "pip install clip-guidance[open_clip]"
)
_EPS = 1e-5  # in every norm of open_clip, where norm_kwargs say nothing else


def unsupported(model_cfg: Mapping[str, Any]) -> str:
    """Tell what makes a model of open_clip another architecture than ours; "" where it is ours.

    Args:
        model_cfg: The ``model_cfg`` of ``open_clip_config.json``.
    """
    vision, text = model_cfg.get("vision_cfg") or {}, model_cfg.get("text_cfg") or {}
    if isinstance(vision.get("layers"), list | tuple):
        return "its vision tower is a ResNet of bottlenecks with attention pooling"
    parts: tuple[tuple[str, Mapping[str, Any], Mapping[str, Any], set[str]], ...] = (
        ("it", model_cfg, {}, _MODEL_READ),
        ("its vision tower", vision, _VISION_USUAL, _VISION_READ),
        ("its text tower", text, _TEXT_USUAL, _TEXT_READ),
    )
    for part, values, usual, read in parts:
        for key in [*usual, *sorted(values.keys() - usual.keys() - read)]:
            if values.get(key, usual.get(key)) != usual.get(key):
                return f"{part} has {key} {values[key]!r:.60}"
        if (values.get("norm_kwargs") or {}).keys() - {"eps"}:
            return f"{part} has norm_kwargs {values['norm_kwargs']!r:.60}"
    pooling = text.get("pool_type", "argmax")
    if pooling != "argmax" and not (pooling == "eos" and type(text.get("eos_id")) is int):
        return f"its text tower has pool_type {pooling!r:.60}"
    return ""


def convert_config(model_cfg: Mapping[str, Any], name: str) -> CLIPConfig:
    """Make the config of the CLIP that equals one of open_clip.

    Args:
        model_cfg: The ``model_cfg`` of ``open_clip_config.json``.
        name: Name of the model, for the messages.

    Raises:
        ModelError: The model has towers of another architecture.
    """
    if reason := unsupported(model_cfg):
        raise ModelError(f"{name}: {reason}, {ONLY_THERE}")
    vision, text = model_cfg.get("vision_cfg") or {}, model_cfg.get("text_cfg") or {}
    act = "quick_gelu" if model_cfg.get("quick_gelu", False) else "gelu"
    width, text_width = int(vision.get("width", 768)), int(text.get("width", 512))
    vocabulary = int(text.get("vocab_size", 49408))
    return CLIPConfig(
        vision_config=ViTConfig(
            hidden_size=width,
            intermediate_size=int(width * vision.get("mlp_ratio", 4.0)),
            num_hidden_layers=vision.get("layers", 12),
            num_attention_heads=width // vision.get("head_width", 64),
            patch_size=vision.get("patch_size", 16),
            image_size=square_side(vision.get("image_size", 224), name),
            hidden_act=act,
            layer_norm_eps=_eps(vision),
        ),
        text_config=TransformerTextConfig(
            vocab_size=vocabulary,
            hidden_size=text_width,
            intermediate_size=int(text_width * text.get("mlp_ratio", 4.0)),
            num_hidden_layers=text.get("layers", 12),
            num_attention_heads=text.get("heads", 8),
            max_position_embeddings=text.get("context_length", 77),
            hidden_act=act,
            layer_norm_eps=_eps(text),
            bos_token_id=vocabulary - 2,
            eos_token_id=text["eos_id"] if text.get("pool_type") == "eos" else vocabulary - 1,
            pad_token_id=text.get("pad_id", 0),
        ),
        projection_dim=model_cfg["embed_dim"],
    )


def describe_config(config: CLIPConfig) -> dict[str, Any]:
    """Describe a CLIP of ours by the ``model_cfg`` of the equal one of open_clip.

    Raises:
        ValueError: There is no equal one: the towers are no plain transformers, the activation is not one of open_clip,
            or the images have another number of channels than 3.
    """
    check_equivalent(config, "open_clip")
    vision, text = config.vision_config, config.text_config
    if vision.hidden_act != text.hidden_act or vision.hidden_act not in ("gelu", "quick_gelu"):
        acts = f"{vision.hidden_act!r:.30} and {text.hidden_act!r:.30}"
        raise ValueError(f'open_clip has "gelu" or "quick_gelu" in both towers, got hidden_act {acts}')
    if vision.num_channels != 3:
        raise ValueError(f"open_clip reads images of 3 channels, got num_channels {vision.num_channels}")
    described: dict[str, Any] = {
        "embed_dim": config.projection_dim,
        "quick_gelu": vision.hidden_act == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": _ratio(vision.intermediate_size, vision.hidden_size),
            "patch_size": vision.patch_size,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": _ratio(text.intermediate_size, text.hidden_size),
        },
    }
    for tower, key in ((vision, "vision_cfg"), (text, "text_cfg")):
        if tower.layer_norm_eps != _EPS:
            described[key]["norm_kwargs"] = {"eps": tower.layer_norm_eps}
    if text.eos_token_id != text.vocab_size - 1:  # else it is the largest id, at which open_clip pools by default
        described["text_cfg"] |= {"pool_type": "eos", "eos_id": text.eos_token_id}
    return described


def describe_weights(weights: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """Describe a model of open_clip that comes without ``open_clip_config.json`` by the shapes of its weights.

    The shapes do not say how many heads there are. A head is 64 wide in open_clip's ViTs, but for the H/14 (80) and the
    bigG/14 (104); the activation is taken to be the plain GELU, as everywhere but in OpenAI's weights.

    Args:
        weights: As for :func:`convert_open_clip`.
        name: Name of the model, for the messages.

    Raises:
        ModelError: A weight that every CLIP of open_clip has is missing.
    """
    known = {key.removeprefix("module.").removeprefix("model."): tensor for key, tensor in weights.items()}
    try:
        patches, image_positions = known["visual.conv1.weight"], known["visual.positional_embedding"]
        words, positions = known["token_embedding.weight"], known["positional_embedding"]
        hidden = known["visual.transformer.resblocks.0.mlp.c_fc.weight"]
        dim = known["visual.proj"].shape[1]
    except KeyError as error:
        raise ModelError(f"{name}: no CLIP of open_clip: has no weight {error}") from None
    width, patch, text_width = patches.shape[0], patches.shape[-1], words.shape[1]
    layers = {
        tower: sum(key.startswith(f"{tower}.resblocks.") and key.endswith("mlp.c_fc.bias") for key in known)
        for tower in ("visual.transformer", "transformer")
    }
    return {
        "embed_dim": dim,
        "vision_cfg": {
            "width": width,
            "layers": layers["visual.transformer"],
            "head_width": {1280: 80, 1664: 104}.get(width, 64),
            "mlp_ratio": _ratio(hidden.shape[0], width),
            "patch_size": patch,
            "image_size": patch * math.isqrt(len(image_positions) - 1),
        },
        "text_cfg": {
            "context_length": len(positions),
            "vocab_size": len(words),
            "width": text_width,
            "heads": max(1, text_width // 64),
            "layers": layers["transformer"],
        },
    }


def _ratio(hidden: int, width: int) -> float:
    """Return the ratio that, times the width and rounded down, is the hidden width."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _eps(cfg: Mapping[str, Any]) -> float:
    """Return what is added to the variance in the norms of a tower."""
    return (cfg.get("norm_kwargs") or {}).get("eps", _EPS)


def square_side(size: Any, name: str) -> int:
    """Return the side of the square images."""
    sides = size if isinstance(size, list | tuple) else [size]
    if len(set(sides)) != 1:
        raise ModelError(f"{name}: expected square images, got image_size {size}")
    return int(sides[0])
