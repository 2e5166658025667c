"""The steps of ``CLIP.from_pretrained``: its options act or are refused, and so does each part of what is loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, CLIPModel, PreTrainedTokenizerBase

from clip_guidance._tensors import as_dtype, check_device
from clip_guidance.clip.adapter import AdaptedCLIP, TransformersAdapter, check_image_size
from clip_guidance.clip.config import CLIPConfig
from clip_guidance.clip.converted import weight_options
from clip_guidance.clip.dual_encoder import DualEncoder
from clip_guidance.clip.hub import FoundModel, HubOptions, ModelError, Place, find_part, reject_options
from clip_guidance.clip.preprocessing import Preprocessing, load_image_processor
from clip_guidance.clip.tokenizer import load_tokenizer

NAMES = (
    *("dtype", "torch_dtype", "device", "revision", "token", "cache_dir", "local_files_only", "subfolder"),
    *("tokenizer", "image_processor", "config", "adapter_kwargs", "trust_remote_code", "variant"),
    *("attn_implementation", "device_map", "state_dict", "output_loading_info"),
)


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded, in the words of ``from_pretrained`` of ``transformers``.

    Attributes:
        dtype: Precision of the weights, or "auto".
        device: Where the model is put; None for where it is loaded.
        config: The config; None to read it.
        attn_implementation: "sdpa" or "eager"; None for the default.
        device_map: Where each part of the model is put; None for one device.
        state_dict: Weights in place of those of the file.
        output_loading_info: Whether what is missing and left over is returned, rather than an error or a warning.
    """

    dtype: torch.dtype | str
    device: torch.device | None = None
    config: CLIPConfig | None = None
    attn_implementation: str | None = None
    device_map: Any = None
    state_dict: Mapping[str, Tensor] | None = None
    output_loading_info: bool = False

    def check(self, found: FoundModel) -> None:
        """Refuse what only a CLIP of this package is loaded with.

        Raises:
            TypeError: Such an option is given for a model of another library.
        """
        given = [name for name in ("config", "device_map", "state_dict") if getattr(self, name) is not None]
        if given and found.model_type != CLIPConfig.model_type:
            kind = f"{found.name} is one of another library ({found.model_type})"
            raise TypeError(f"{given[0]}: only for a CLIP that was saved by this package; {kind}")

    def own(self, found: FoundModel) -> tuple[str | None, dict[str, Any]]:
        """Return the name and the keywords by which ``transformers`` loads a CLIP of this package.

        Where weights are given, they are loaded without a name, as ``transformers`` wants it.
        """
        fixed: dict[str, Any] = {"dtype": self.dtype, "use_safetensors": True, "output_loading_info": True}
        if self.device_map is not None:
            fixed["device_map"] = self.device_map
        if self.state_dict is None:
            return found.path, {"config": self.config, **fixed, **found.options}
        config = self.config or CLIPConfig.from_pretrained(found.path, **found.options)
        return None, {"config": config, "state_dict": self.state_dict, **fixed}


def check_options(given: dict[str, Any], dtype: torch.dtype | str, device: torch.device | str | None) -> LoadOptions:
    """Check the options that are no parameters of ``from_pretrained``: those of ``transformers``, and AutoModel's.

    Args:
        given: The options by name. ``AutoModel`` passes the config that it has read, no remote code, and how it looked
            for adapters of peft.
        dtype: The parameter ``dtype``, which ``torch_dtype`` replaces.
        device: The parameter ``device``.

    Raises:
        TypeError: An option is unknown, of another type, or asks for what a CLIP cannot do.
        ValueError: There is no such dtype or device.
    """
    reject_options("CLIP.from_pretrained", given, NAMES)
    if given.get("trust_remote_code"):
        raise TypeError("trust_remote_code: no code of a repository is run, expected False")
    if given.get("variant") is not None:  # a modular pipeline of diffusers passes None
        raise TypeError(f"variant: a CLIP has one file of weights, and dtype converts it; got {given['variant']!r:.60}")
    if others := sorted(set(given.get("adapter_kwargs") or ()) - {"token", "revision"}):
        raise TypeError(f"adapter_kwargs: load adapters with peft.PeftModel.from_pretrained, got {', '.join(others)}")
    config = given.get("config")
    if not isinstance(config, CLIPConfig | None):
        raise TypeError(f"config: expected a clip_guidance.CLIPConfig, got {type(config).__name__}")
    expected: dict[str, type | tuple[type, ...]] = {
        "attn_implementation": (str, NoneType),
        "device_map": (str, int, dict, torch.device, NoneType),
        "state_dict": (Mapping, NoneType),
        "output_loading_info": bool,
    }
    known = {name: given[name] for name in expected if name in given}
    for name, value in known.items():
        if not isinstance(value, expected[name]):
            raise TypeError(f"{name}: got {value!r:.60} of type {type(value).__name__}")
    dtype = given.get("torch_dtype") or dtype
    device = None if device is None else check_device(device)
    return LoadOptions(dtype if dtype == "auto" else as_dtype(dtype), device, config, **known)


@dataclass(frozen=True)
class Parts:
    """What is used in place of a model's own parts: the part, or where it is taken from; None for its own."""

    tokenizer: PreTrainedTokenizerBase | Place | None
    image_processor: Preprocessing | Place | None


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
    if not isinstance(image_processor, Preprocessing | str | Path | None):
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


def load_parts(found: FoundModel, parts: Parts) -> tuple[PreTrainedTokenizerBase | None, Any]:
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


def load_transformers(
    convert: Callable[..., DualEncoder], found: FoundModel, parts: Parts, dtype: torch.dtype | str
) -> tuple[DualEncoder, dict[str, Any]]:
    """Load a dual encoder of transformers, by the class that its type asks for.

    Args:
        convert: Makes a CLIP of ours from a ``transformers.CLIPModel``, its tokenizer and its preprocessing.
        found: Where the model is.
        parts: What is used in place of its own parts.
        dtype: Precision of the weights; "auto" for the one in which they are stored.

    Returns:
        The model, and what transformers says about its weights.
    """
    tokenizer, processor = load_parts(found, parts)
    weights = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True, **weight_options(found)}
    if found.model_type == "clip":
        source, info = CLIPModel.from_pretrained(found.path, **weights)
        return convert(source, tokenizer, processor), info
    source, info = AutoModel.from_pretrained(found.path, trust_remote_code=False, **weights)
    return TransformersAdapter(source, tokenizer, processor, found.name), info


def check_loaded(name: str, model: Any, info: dict[str, Any], strict: bool = True) -> None:
    """Check that a CLIP is complete and that its parts fit, and cut its tokenizer to the context.

    Args:
        name: What the user asked for.
        model: The CLIP.
        info: What transformers says about its weights.
        strict: Whether weights that are missing are an error, and those left over a warning.

    Raises:
        ModelError: Weights are missing, or the preprocessing makes images of another size than the tower reads.

    Warns:
        UserWarning: Weights are left over.
    """
    left_over = sorted(info["unexpected_keys"])
    also = f"; left over are {', '.join(left_over[:3])}" if left_over else ""
    if strict and (missing := sorted(info["missing_keys"])):
        raise ModelError(f"{name}: weights missing from it: {', '.join(missing[:5])}{also}")
    if strict and left_over:
        of = f"{len(left_over)} weights belong to no part of its towers, and are not read: "
        warnings.warn(f"{name}: {of}{', '.join(left_over[:3])}", stacklevel=3)
    if isinstance(model, AdaptedCLIP):  # which has checked its parts
        return
    check_image_size(name, model.image_processor, model.config.vision_config.image_size)
    if model.tokenizer is not None:
        context = model.config.text_config.max_position_embeddings
        model.tokenizer.model_max_length = min(model.tokenizer.model_max_length, context)
