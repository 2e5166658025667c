"""The steps of ``CLIP.from_pretrained``: its options act or are refused, and so does each part of what is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from clip_guidance._tensors import as_dtype
from clip_guidance.clip.config import CLIPConfig
from clip_guidance.clip.hub import FoundModel, ModelError, reject_options
from clip_guidance.clip.image_processor import ImageProcessor, load_image_processor
from clip_guidance.clip.tokenizer import load_tokenizer

NAMES = (
    *("dtype", "torch_dtype", "device", "revision", "token", "cache_dir", "local_files_only", "subfolder"),
    *("tokenizer", "image_processor", "config", "adapter_kwargs", "trust_remote_code"),
)


def check_options(given: dict[str, Any], dtype: torch.dtype | str) -> tuple[torch.dtype | str, CLIPConfig | None]:
    """Check the options that are no parameters of ``from_pretrained``: its other name of dtype, and AutoModel's.

    Args:
        given: The options by name. ``AutoModel`` passes the config that it has read, no remote code, and how it looked
            for adapters of peft.
        dtype: The parameter ``dtype``, which ``torch_dtype`` replaces.

    Returns:
        The precision of the weights, or "auto", and the config, None to read it.

    Raises:
        TypeError: An option is unknown, or asks for what a CLIP cannot do.
        ValueError: There is no such dtype.
    """
    reject_options("CLIP.from_pretrained", given, NAMES)
    if given.get("trust_remote_code"):
        raise TypeError("trust_remote_code: no code of a repository is run, expected False")
    if others := sorted(set(given.get("adapter_kwargs") or ()) - {"token", "revision"}):
        raise TypeError(f"adapter_kwargs: load adapters with peft.PeftModel.from_pretrained, got {', '.join(others)}")
    config = given.get("config")
    if not isinstance(config, CLIPConfig | None):
        raise TypeError(f"config: expected a clip_guidance.CLIPConfig, got {type(config).__name__}")
    dtype = given.get("torch_dtype") or dtype
    return dtype if dtype == "auto" else as_dtype(dtype), config


def check_parts(tokenizer: Any, image_processor: Any) -> None:
    """Check the parts that are given in place of the model's own.

    Raises:
        TypeError: One is of another type.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase | None):
        raise TypeError(f"tokenizer: expected a tokenizer of transformers, got {type(tokenizer).__name__}")
    if not isinstance(image_processor, ImageProcessor | None):
        raise TypeError(f"image_processor: expected an ImageProcessor, got {type(image_processor).__name__}")


@contextlib.contextmanager
def as_model_errors(name: str) -> Iterator[None]:
    """Turn whatever a block raises into a ``ModelError`` that names the model.

    What is read is somebody else's file, for which the libraries that parse it raise errors of any kind.
    """
    try:
        yield
    except (ModelError, Warning):  # a warning that the user turned into an error is no fault of the file
        raise
    except Exception as error:
        raise ModelError(f"{name}: cannot be loaded: {type(error).__name__}: {error}") from error


def load_parts(
    found: FoundModel, tokenizer: PreTrainedTokenizerBase | None, image_processor: ImageProcessor | None
) -> tuple[PreTrainedTokenizerBase | None, ImageProcessor]:
    """Load the tokenizer and the preprocessing of a model, where they are not given.

    Returns:
        Both; None for the tokenizer of a CLIP of this package that was saved without one.

    Raises:
        ModelError: One cannot be loaded.
    """
    tokenizer = load_tokenizer(found) if tokenizer is None else tokenizer
    if tokenizer is None and found.model_type != CLIPConfig.model_type:
        expected = "expected tokenizer.json, or vocab.json and merges.txt; or give a tokenizer"
        raise ModelError(f"{found.name}: no vocabulary: {expected}")
    return tokenizer, load_image_processor(found) if image_processor is None else image_processor


def check_loaded(name: str, model: Any, info: dict[str, Any]) -> None:
    """Check that a CLIP is complete and that its parts fit, and cut its tokenizer to the context.

    Args:
        name: What the user asked for.
        model: The CLIP.
        info: What transformers says about its weights.

    Raises:
        ModelError: Weights are missing, or the preprocessing makes images of another size than the tower reads.
    """
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{name}: weights missing from it: {', '.join(missing[:5])}")
    made, read = model.image_processor.image_size, model.config.vision_config.image_size
    if made != read:
        raise ModelError(f"{name}: its image tower reads images of {read} pixels, its preprocessing makes {made}")
    if model.tokenizer is not None:
        context = model.config.text_config.max_position_embeddings
        model.tokenizer.model_max_length = min(model.tokenizer.model_max_length, context)
