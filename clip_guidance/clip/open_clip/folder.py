"""Folders and repositories of open_clip: ``open_clip_config.json``, weights in safetensors, and mostly a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from clip_guidance.clip.dual_encoder import DualEncoder
from clip_guidance.clip.hub import OPEN_CLIP_CONFIG, FoundModel, HubOptions, ModelError, Place, read_model_json
from clip_guidance.clip.load import Parts, load_parts
from clip_guidance.clip.open_clip.config import unsupported
from clip_guidance.clip.open_clip.installed import TOKENIZER, import_library, load_by_library
from clip_guidance.clip.open_clip.preprocessing import read_preprocessing
from clip_guidance.clip.open_clip.weights import convert_open_clip
from clip_guidance.clip.tokenizer import load_tokenizer

WEIGHTS = ("open_clip_model.safetensors", "model.safetensors")
OPENAI_VOCABULARY = "openai/clip-vit-large-patch14"  # a repository with the vocabulary that open_clip has built in


def load_open_clip(
    make: Callable[..., Any], found: FoundModel, parts: Parts, options: HubOptions, dtype: torch.dtype | str
) -> tuple[DualEncoder, dict[str, list[str]]]:
    """Load a model of open_clip: as one of ours where the towers are the same, else by the open_clip library.

    Args:
        make: The class of our CLIP.
        found: Where ``open_clip_config.json`` is.
        parts: What is used in place of the model's own parts.
        options: How the hub is read, for a tokenizer that is in another repository.
        dtype: Precision of the weights; "auto" for the one in which they are stored.

    Returns:
        The model, and which weights are missing, as ``transformers`` says it.

    Raises:
        ModelError: The weights are not there or do not fit, there is no tokenizer, or the towers are of another
            architecture and open_clip is not installed.
    """
    described = read_model_json(found, OPEN_CLIP_CONFIG)
    model_cfg = described.get("model_cfg")
    if not isinstance(model_cfg, dict):
        raise ModelError(f"{found.name}: {OPEN_CLIP_CONFIG} has no model_cfg")
    weights_path, text_cfg = find_weights(found), model_cfg.get("text_cfg") or {}
    if reason := unsupported(model_cfg):
        library = import_library(f"{found.name}: {reason}")
        model = load_by_library(library, found, weights_path, parts, text_cfg)
        return (model if dtype == "auto" else model.to(dtype)), {"missing_keys": [], "unexpected_keys": []}
    config, weights = convert_open_clip(model_cfg, load_file(weights_path), found.name)
    tokenizer, processor = parts.tokenizer, parts.image_processor
    if processor is None:
        processor = read_preprocessing(described.get("preprocess_cfg") or {}, config.vision_config.image_size)
    if tokenizer is None:
        tokenizer = find_tokenizer(found, options, text_cfg)
    stored = weights["visual_projection.weight"].dtype
    model = make(config, *load_parts(found, Parts(tokenizer, processor))).to(stored if dtype == "auto" else dtype)
    missing, left_over = model.load_state_dict(weights, strict=False)
    if left_over:
        raise ModelError(f"{found.name}: weights left over: {', '.join(left_over[:3])}")
    return model, {"missing_keys": missing, "unexpected_keys": left_over}


def find_weights(place: Place) -> Path:
    """Return the path of the weights of a model of open_clip.

    Raises:
        ModelError: There are none in safetensors.
    """
    path = next(filter(None, map(place.file, WEIGHTS)), None)
    if path is None:
        raise ModelError(f"{place.name}: no weights in safetensors: expected {' or '.join(WEIGHTS)}")
    return path


def find_tokenizer(place: Place, options: HubOptions, text_cfg: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside the weights, else the one that is named, else OpenAI's.

    Raises:
        ModelError: It can be had neither from the hub nor from its cache; the message says which one it is.
    """
    if any(map(place.file, TOKENIZER)) and (found := load_tokenizer(place)) is not None:
        return found
    name = text_cfg.get("hf_tokenizer_name") or OPENAI_VOCABULARY
    elsewhere = {**options.as_dict(), "revision": None, "subfolder": ""}  # these are of the model's own repository
    try:
        found = load_tokenizer(Place(name, name, elsewhere))
    except ModelError:
        found = None
    if found is None:
        given = f'tokenizer=transformers.AutoTokenizer.from_pretrained("{name:.80}")'
        raise ModelError(f"{place.name}: no vocabulary beside it, and none at hand of {name:.80}; give {given}")
    return found
