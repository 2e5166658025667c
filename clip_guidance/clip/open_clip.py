"""Convert the CLIPs of open_clip: the architecture is that of ``transformers``, so weights are renamed, key by key.

open_clip (https://github.com/mlfoundations/open_clip) describes a model by ``open_clip_config.json``. What is converted
here are its own vision and text transformers, as OpenAI, LAION, DataComp, DFN and MetaCLIP trained them. It keeps the
queries, keys and values of a layer in one matrix, and multiplies by its projections from the right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clip_guidance.clip.config import CLIPConfig
from clip_guidance.clip.hub import ModelError
from clip_guidance.towers import TransformerTextConfig, ViTConfig

_TEXT, _IMAGE = "text_encoder.text_model.", "image_encoder.vision_model."
# Beginnings of names: those of open_clip, and ours.
_NAMES = (
    ("visual.class_embedding", f"{_IMAGE}embeddings.class_embedding"),
    ("visual.positional_embedding", f"{_IMAGE}embeddings.position_embedding.weight"),
    ("visual.conv1.", f"{_IMAGE}embeddings.patch_embedding."),
    ("visual.ln_pre.", f"{_IMAGE}pre_layrnorm."),
    ("visual.transformer.resblocks.", f"{_IMAGE}encoder.layers."),
    ("visual.ln_post.", f"{_IMAGE}post_layernorm."),
    ("visual.proj", "visual_projection.weight"),
    ("token_embedding.", f"{_TEXT}embeddings.token_embedding."),
    ("positional_embedding", f"{_TEXT}embeddings.position_embedding.weight"),
    ("transformer.resblocks.", f"{_TEXT}encoder.layers."),
    ("ln_final.", f"{_TEXT}final_layer_norm."),
    ("text_projection", "text_projection.weight"),
    ("logit_scale", "logit_scale"),
)
# Parts of names inside a layer.
_LAYER_NAMES = (
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
_HEADS = ("q_proj", "k_proj", "v_proj")  # in the order of open_clip's one matrix
_CONSTANTS = ("attn_mask", "input_resolution", "context_length", "vocab_size")  # that OpenAI's releases hold besides

# What the settings of a tower may be besides those that are read here; anything else is another architecture.
_VISION_DEFAULTS = {
    "ls_init_value": None, "attentional_pool": False, "no_ln_pre": False, "pos_embed_type": "learnable",
    "final_ln_after_pool": False, "pool_type": "tok", "act_kwargs": None, "norm_kwargs": None, "block_type": None,
    "qk_norm": False, "scaled_cosine_attn": False, "scale_heads": False, "scale_attn_inner": False,
    "scale_attn": False, "scale_fc": False, "timm_model_name": None,
}  # fmt: skip
_TEXT_DEFAULTS = {
    "text_arch": "clip", "ls_init_value": None, "embed_cls": False, "no_causal_mask": False,
    "final_ln_after_pool": False, "pool_type": "argmax", "proj_bias": False, "proj_type": "linear", "act_kwargs": None,
    "norm_kwargs": None, "block_type": None, "qk_norm": False, "scaled_cosine_attn": False, "scale_heads": False,
    "scale_attn_inner": False, "scale_attn": False, "scale_fc": False, "hf_model_name": None,
}  # fmt: skip


def convert_open_clip(
    model_cfg: Mapping[str, Any], weights: Mapping[str, Tensor], name: str
) -> tuple[CLIPConfig, dict[str, Tensor]]:
    """Convert a CLIP of open_clip to the config and the state dict of an equal CLIP.

    Args:
        model_cfg: The ``model_cfg`` of ``open_clip_config.json``.
        weights: Its state dict; "module." or "model." before each name, as training loops and ports leave it, is
            taken off.
        name: Name of the model, for the messages.

    Returns:
        The config, and the weights under the names that our CLIP gives them.

    Raises:
        ModelError: The model has towers of another architecture, or weights are missing or left over.
    """
    vision, text = dict(model_cfg.get("vision_cfg", {})), dict(model_cfg.get("text_cfg", {}))
    for tower, values, defaults in (("vision", vision, _VISION_DEFAULTS), ("text", text, _TEXT_DEFAULTS)):
        for key, default in defaults.items():
            if values.get(key, default) != default:
                raise ModelError(
                    f"{name}: its {tower} tower has {key} {values[key]!r}, which only the open_clip library builds: "
                    "load it there and pass it to CLIP.wrap"
                )
    if isinstance(vision.get("layers"), list | tuple):
        raise ModelError(f"{name}: its vision tower is a ResNet of open_clip; load it there and pass it to CLIP.wrap")
    act = "quick_gelu" if model_cfg.get("quick_gelu", False) else "gelu"
    width, text_width = int(vision.get("width", 768)), int(text.get("width", 512))
    vocabulary = int(text.get("vocab_size", 49408))
    config = CLIPConfig(
        vision_config=ViTConfig(
            hidden_size=width,
            intermediate_size=int(width * vision.get("mlp_ratio", 4.0)),
            num_hidden_layers=vision.get("layers", 12),
            num_attention_heads=width // vision.get("head_width", 64),
            patch_size=vision.get("patch_size", 16),
            image_size=_side(vision.get("image_size", 224), name),
            hidden_act=act,
        ),
        text_config=TransformerTextConfig(
            vocab_size=vocabulary,
            hidden_size=text_width,
            intermediate_size=int(text_width * text.get("mlp_ratio", 4.0)),
            num_hidden_layers=text.get("layers", 12),
            num_attention_heads=text.get("heads", 8),
            max_position_embeddings=text.get("context_length", 77),
            hidden_act=act,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=0,
        ),
        projection_dim=model_cfg["embed_dim"],
    )
    return config, renamed(weights, name)


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
            "mlp_ratio": hidden.shape[0] / width,
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


def renamed(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Give the weights of open_clip our names.

    Raises:
        ModelError: A weight has a name that no CLIP of open_clip has.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        known = key.removeprefix("module.").removeprefix("model.").removeprefix("text.")
        if known in _CONSTANTS:
            continue
        match = next(((old, new) for old, new in _NAMES if known.startswith(old)), None)
        if match is None:
            raise ModelError(f"{name}: a weight that no CLIP of open_clip has: {key}")
        ours = match[1] + known.removeprefix(match[0])
        for old, new in _LAYER_NAMES:
            ours = ours.replace(old, new)
        if ".attn.in_proj_" in ours:
            for part, head in zip(tensor.chunk(3), _HEADS, strict=True):
                found[ours.replace(".attn.in_proj_", f".self_attn.{head}.")] = part
        elif known in ("visual.proj", "text_projection"):
            found[ours] = tensor.T.contiguous()
        elif known == "text_projection.weight":
            found["text_projection.weight"] = tensor
        else:
            found[ours] = tensor.reshape(1) if known == "logit_scale" else tensor
    return found


def as_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give our weights the names of open_clip, as :func:`renamed` reads them."""
    found: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        old, new = next((old, new) for old, new in _NAMES if key.startswith(new))
        theirs = old + key.removeprefix(new)
        for old, new in _LAYER_NAMES:
            theirs = theirs.replace(new, old)
        if ".self_attn.q_proj." in theirs:
            parts = [weights[key.replace("q_proj", head)] for head in _HEADS]
            found[theirs.replace(".self_attn.q_proj.", ".attn.in_proj_")] = torch.cat(parts)
        elif theirs in ("visual.proj", "text_projection"):
            found[theirs] = tensor.T.contiguous()
        elif not any(f".self_attn.{head}." in theirs for head in _HEADS):
            found[theirs] = tensor.reshape(()) if theirs == "logit_scale" else tensor
    return found


def _side(size: Any, name: str) -> int:
    """Return the side of the square images."""
    sides = size if isinstance(size, list | tuple) else [size]
    if len(set(sides)) != 1:
        raise ModelError(f"{name}: expected square images, got image_size {size}")
    return int(sides[0])
