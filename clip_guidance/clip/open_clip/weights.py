"""The weights of open_clip's models under our names, and ours under its names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clip_guidance.clip.config import CLIPConfig
from clip_guidance.clip.hub import ModelError
from clip_guidance.clip.open_clip.config import convert_config

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
    return convert_config(model_cfg, name), renamed(weights, name)


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
