"""The steps of ``CLIP.from_pretrained``: its options act or are refused, and so does each part of what is loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from clip_guidance._tensors import as_dtype
from clip_guidance.clip.adapter import AdaptedCLIP
from clip_guidance.clip.config import CLIPConfig
from clip_guidance.clip.hub import FoundModel, HubOptions, ModelError, Place, find_part, reject_options
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


@dataclass(frozen=True)
class Parts:
    """What is used in place of a model's own parts: the part, or where it is taken from; None for its own."""

    tokenizer: PreTrainedTokenizerBase | Place | None
    image_processor: ImageProcessor | Place | None


def find_parts(tokenizer: Any, image_processor: Any, options: HubOptions) -> Parts:
    """Check the parts that are given in place of a model's own, and find the models that are named.

    Args:
        tokenizer: A tokenizer, or the name or folder of a model.
        image_processor: An image processor, or the name or folder of a model.
        options: How the hub is read; the revision and the subfolder are the model's own.

    Raises:
        TypeError: One is of another type.
        ModelError: There is no model of a name.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase | str | Path | None):
        raise TypeError(f"tokenizer: expected a tokenizer of transformers or a name, got {type(tokenizer).__name__}")
    if not isinstance(image_processor, ImageProcessor | str | Path | None):
        raise TypeError(f"image_processor: expected an ImageProcessor or a name, got {type(image_processor).__name__}")
    other = dataclasses.replace(options, revision=None, subfolder="")
    if isinstance(tokenizer, str | Path):
        tokenizer = find_part(tokenizer, "tokenizer_config.json", other)
    if isinstance(image_processor, str | Path):
        image_processor = find_part(image_processor, "preprocessor_config.json", other)
    return Parts(tokenizer, image_processor)


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


def load_parts(found: FoundModel, parts: Parts) -> tuple[PreTrainedTokenizerBase | None, ImageProcessor]:
    """Load the tokenizer and the preprocessing of a model, where they are not given.

    Returns:
        Both; None for the tokenizer of a CLIP of this package that was saved without one.

    Raises:
        ModelError: One cannot be loaded.
    """
    place = found if parts.tokenizer is None else parts.tokenizer
    tokenizer = load_tokenizer(place) if isinstance(place, Place) else place
    if tokenizer is None and (place is not found or found.model_type != CLIPConfig.model_type):
        expected = "expected tokenizer.json, or vocab.json and merges.txt; or give a tokenizer"
        raise ModelError(f"{place.name}: no vocabulary: {expected}")
    source = found if parts.image_processor is None else parts.image_processor
    return tokenizer, load_image_processor(source) if isinstance(source, Place) else source


def check_loaded(name: str, model: Any, info: dict[str, Any]) -> None:
    """Check that a CLIP is complete and that its parts fit, and cut its tokenizer to the context.

    Args:
        name: What the user asked for.
        model: The CLIP.
        info: What transformers says about its weights.

    Raises:
        ModelError: Weights are missing, or the preprocessing makes images of another size than the tower reads.

    Warns:
        UserWarning: Weights are left over.
    """
    left_over = sorted(info["unexpected_keys"])
    also = f"; left over are {', '.join(left_over[:3])}" if left_over else ""
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{name}: weights missing from it: {', '.join(missing[:5])}{also}")
    if left_over:
        of = f"{len(left_over)} weights belong to no part of its towers, and are not read: "
        warnings.warn(f"{name}: {of}{', '.join(left_over[:3])}", stacklevel=3)
    if isinstance(model, AdaptedCLIP):  # which has checked its parts
        return
    made, read = model.image_processor.image_size, model.config.vision_config.image_size
    if made != read:
        raise ModelError(f"{name}: its image tower reads images of {read} pixels, its preprocessing makes {made}")
    if model.tokenizer is not None:
        context = model.config.text_config.max_position_embeddings
        model.tokenizer.model_max_length = min(model.tokenizer.model_max_length, context)
