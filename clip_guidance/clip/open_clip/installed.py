"""Models that only the open_clip library builds: towers of timm and of transformers, ResNets, SigLIP, CoCa.

The library is an optional extra. It reads the same files that were found here, as a "local-dir:", so that the
revision and the cache are the user's and no pickle is opened.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from clip_guidance.clip.adapter import ModuleAdapter
from clip_guidance.clip.function_parts import FunctionTokenizer
from clip_guidance.clip.hub import FOLDER_PREFIX, HUB_PREFIX, FoundModel, ModelError
from clip_guidance.clip.load import Parts, load_parts
from clip_guidance.clip.open_clip.config import ONLY_THERE, square_side
from clip_guidance.clip.open_clip.preprocessing import read_preprocessing
from clip_guidance.clip.tokenizer import one_at_a_time

TOKENIZER = ("tokenizer_config.json", "tokenizer.json")  # a model that has one of them has a tokenizer of its own
_TEXT_FILES = ("*.json", "*.txt", "*.model")  # of tokenizers, and the config


def import_library(reason: str) -> ModuleType:
    """Import open_clip.

    Args:
        reason: Why it is needed, for the message.

    Raises:
        ModelError: It is not installed.
    """
    try:
        return importlib.import_module("open_clip")
    except ImportError as error:
        raise ModelError(f"{reason}, {ONLY_THERE}") from error


def load_by_library(
    library: ModuleType, found: FoundModel, weights: Path, parts: Parts, text_cfg: Mapping[str, Any]
) -> ModuleAdapter:
    """Load a model by open_clip, with preprocessing of ours, through which gradients flow.

    Args:
        library: open_clip.
        found: Where the model is.
        weights: Path of its weights in safetensors; the config lies beside them.
        parts: What is used in place of its own parts.
        text_cfg: The settings of its text tower.

    Raises:
        ModelError: The model reads images that are not square.
    """
    folder = f"{FOLDER_PREFIX}{weights.parent}"
    model = library.create_model_from_pretrained(folder, return_transform=False)
    processor = parts.image_processor
    if processor is None:
        side = square_side(model.visual.image_size, found.name)
        processor = read_preprocessing(model.visual.preprocess_cfg, side)
    tokenizer: Any = parts.tokenizer
    if tokenizer is None:
        tokenizer = FunctionTokenizer(_own_tokenizer(library, found, folder, text_cfg))
    tokenizer, processor = load_parts(found, dataclasses.replace(parts, tokenizer=tokenizer, image_processor=processor))
    if isinstance(tokenizer, PreTrainedTokenizerBase):  # a text tower of open_clip reads texts of one length
        tokenizer = FunctionTokenizer(_of_length(tokenizer, text_cfg.get("context_length", 77)))
    return ModuleAdapter(model, tokenizer, processor, found.name)


def _own_tokenizer(library: ModuleType, found: FoundModel, folder: str, text_cfg: Mapping[str, Any]) -> Any:
    """Make the tokenizer that open_clip makes; of a repository its files are downloaded first."""
    if found.options:
        subfolder = found.options["subfolder"]
        patterns = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in _TEXT_FILES]
        options = {name: value for name, value in found.options.items() if name != "subfolder"}
        snapshot_download(found.path, allow_patterns=patterns, **options)
        if text_cfg.get("hf_tokenizer_name") and not any(map(found.file, TOKENIZER)):
            return library.get_tokenizer(HUB_PREFIX + found.path, cache_dir=options["cache_dir"])
    return library.get_tokenizer(folder)


def _of_length(tokenizer: PreTrainedTokenizerBase, length: int) -> Callable[[list[str]], Tensor]:
    options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    return lambda texts: one_at_a_time(tokenizer, texts, **options).input_ids
