"""Folders and repositories of open_clip: ``open_clip_config.json``, weights in safetensors, and mostly a tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from clip_guidance.clip.config import CLIPConfig
from clip_guidance.clip.hub import OPEN_CLIP_CONFIG, HubOptions, ModelError, Place, read_model_json
from clip_guidance.clip.image_processor import CLIP_MEAN, CLIP_STD, RESAMPLING, ImageProcessor
from clip_guidance.clip.open_clip.weights import convert_open_clip
from clip_guidance.clip.tokenizer import load_tokenizer

WEIGHTS = ("open_clip_model.safetensors", "model.safetensors")
TOKENIZER = ("tokenizer_config.json", "tokenizer.json")  # a model that has one of them has a tokenizer of its own
OPENAI_VOCABULARY = "openai/clip-vit-large-patch14"  # a repository with the vocabulary that open_clip has built in
_FILTERS = {"bicubic": 3, "bilinear": 2, "random": 3}  # PIL's numbers; "random" is for training


@dataclass(frozen=True)
class OpenCLIPParts:
    """What a CLIP of ours is made of that equals one of open_clip.

    Attributes:
        name: What the user asked for.
        config: Its config.
        weights: Its state dict, in the precision in which it is stored.
        tokenizer: Its tokenizer.
        image_processor: Its preprocessing.
    """

    name: str
    config: CLIPConfig
    weights: dict[str, Tensor]
    tokenizer: PreTrainedTokenizerBase
    image_processor: ImageProcessor

    def build(self, make: Callable[..., Any], dtype: torch.dtype | str) -> tuple[Any, dict[str, list[str]]]:
        """Build the CLIP.

        Args:
            make: The class of the CLIP.
            dtype: Precision of its weights; "auto" for the one in which they are stored.

        Returns:
            The CLIP, and which weights are missing, as ``transformers`` says it.

        Raises:
            ModelError: Weights are left over.
        """
        stored = self.weights["visual_projection.weight"].dtype
        model = make(self.config, self.tokenizer, self.image_processor).to(stored if dtype == "auto" else dtype)
        missing, left_over = model.load_state_dict(self.weights, strict=False)
        if left_over:
            raise ModelError(f"{self.name}: weights left over: {', '.join(left_over[:3])}")
        return model, {"missing_keys": missing, "unexpected_keys": left_over}


def read_open_clip(
    place: Place, options: HubOptions, tokenizer: PreTrainedTokenizerBase | None, image_processor: ImageProcessor | None
) -> OpenCLIPParts:
    """Read a CLIP of open_clip with towers of our architecture.

    Args:
        place: Where ``open_clip_config.json`` is.
        options: How the hub is read, for a tokenizer that is in another repository.
        tokenizer: Used in place of the model's own.
        image_processor: Used in place of the model's own.

    Raises:
        ModelError: The towers are of another architecture, the weights are not there or not those of such a model, or
            there is no tokenizer.
    """
    described = read_model_json(place, OPEN_CLIP_CONFIG)
    model_cfg = described.get("model_cfg")
    if not isinstance(model_cfg, dict):
        raise ModelError(f"{place.name}: {OPEN_CLIP_CONFIG} has no model_cfg")
    path = next(filter(None, map(place.file, WEIGHTS)), None)
    if path is None:
        raise ModelError(f"{place.name}: no weights in safetensors: expected {' or '.join(WEIGHTS)}")
    config, weights = convert_open_clip(model_cfg, load_file(path), place.name)
    if image_processor is None:
        image_processor = read_preprocessing(described.get("preprocess_cfg") or {}, config.vision_config.image_size)
    if tokenizer is None:
        tokenizer = read_tokenizer(place, options, model_cfg.get("text_cfg") or {})
    return OpenCLIPParts(place.name, config, weights, tokenizer, image_processor)


def read_tokenizer(place: Place, options: HubOptions, text_cfg: Mapping[str, Any]) -> PreTrainedTokenizerBase:
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


def read_preprocessing(cfg: Mapping[str, Any], image_size: int) -> ImageProcessor:
    """Make the preprocessing of a ``preprocess_cfg``; what is left out is open_clip's default.

    Args:
        cfg: The ``preprocess_cfg`` of ``open_clip_config.json``.
        image_size: Side of the images that the model reads, which counts whatever the ``size`` says.

    Raises:
        ValueError: A value is not one that open_clip knows.

    Example:
        >>> from clip_guidance.clip.open_clip.folder import read_preprocessing
        >>> read_preprocessing({"interpolation": "bilinear", "resize_mode": "squash"}, 224).resize_to
        (224, 224)
    """
    given = {key: value for key, value in cfg.items() if value is not None}
    mean, std = (
        tuple(values) if isinstance(values, list | tuple) else (values,) * 3
        for values in (given.get("mean", CLIP_MEAN), given.get("std", CLIP_STD))
    )
    filter_name = given.get("interpolation", "bicubic")
    if filter_name not in _FILTERS:
        raise ValueError(f"interpolation: expected {' or '.join(_FILTERS)}, got {filter_name!r:.60}")
    made = ImageProcessor(image_size, mean, std, resample=_FILTERS[filter_name])
    mode = given.get("resize_mode", "shortest")
    if mode == "shortest":
        return dataclasses.replace(made, round_crop=True)
    if mode == "squash":
        return dataclasses.replace(made, resize_to=(image_size, image_size))
    if mode == "longest":
        return dataclasses.replace(made, pad=True, fill=given.get("fill_color", 0))
    raise ValueError(f"resize_mode: expected shortest, squash or longest, got {mode!r:.60}")


def describe_preprocessing(processor: ImageProcessor) -> dict[str, Any]:
    """Describe preprocessing as a ``preprocess_cfg``.

    Raises:
        ValueError: open_clip has no such preprocessing: it resizes to another size than it cuts out.
    """
    size = processor.image_size
    modes = {size: "longest" if processor.pad else "shortest", (size, size): "squash"}
    if processor.resize_to not in modes:
        raise ValueError(f"open_clip resizes to the size {size} of its images, got resize_to={processor.resize_to}")
    return {
        "size": size,
        "mode": "RGB",
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "interpolation": RESAMPLING[processor.resample],
        "resize_mode": modes[processor.resize_to],
        "fill_color": processor.fill,
    }
