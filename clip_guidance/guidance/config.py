"""Turn the parts of a guidance into values that json can hold, and back."""

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import guiders
from PIL import Image
from torch import Tensor

from clip_guidance.guidance import methods
from clip_guidance.guidance.checks import as_number, as_weight, shown
from clip_guidance.guidance.cutouts import Cutouts
from clip_guidance.guidance.decoding import Decoding
from clip_guidance.guidance.modes import Mode
from clip_guidance.guidance.modes.blend import Blend
from clip_guidance.guidance.modes.noisy import FOLDER, Noisy
from clip_guidance.guidance.regions import Region

_MODES = (*methods.METHODS, Noisy, Blend)  # those with parameters, which a config holds


def cutouts_to_config(cutouts: Cutouts) -> dict[str, Any]:
    """Return the arguments of ``cutouts``."""
    return {each.name: getattr(cutouts, each.name) for each in fields(cutouts) if each.init}


def target_to_config(target: Any) -> Any:
    """Turn a target into texts, numbers, lists and mappings; files and regions are marked by their class.

    Raises:
        TypeError: An image or a mask is in memory.
    """
    if isinstance(target, os.PathLike):
        return {"_class_name": "Path", "path": os.fspath(target)}
    if isinstance(target, Region):
        parts = {name: target_to_config(getattr(target, name)) for name in ("target", "mask_or_box", "weight")}
        return {"_class_name": "Region", **parts}
    if isinstance(target, Image.Image | Tensor | np.ndarray):
        raise TypeError(
            f"a config holds no images: a {type(target).__name__} in memory, as a target or a mask, cannot be saved. "
            "Pass the pathlib.Path of its file"
        )
    if isinstance(target, Mapping):
        if all(isinstance(each, str) for each in target):
            return {each: as_weight(weight, shown(each)) for each, weight in target.items()}
        return [[target_to_config(each), as_weight(weight, shown(each))] for each, weight in target.items()]
    if isinstance(target, list | tuple):
        return [target_to_config(each) for each in target]
    return target if isinstance(target, str) else as_number("a weight", target)


def target_from_config(config: Any) -> Any:
    """Make a target from what :func:`target_to_config` returned, or from texts as they are."""
    if isinstance(config, list | tuple):
        return [target_from_config(each) for each in config]
    name = config.get("_class_name") if isinstance(config, dict) else None
    if name == "Path":
        return Path(config["path"])
    if name == "Region":
        return Region(target_from_config(config["target"]), target_from_config(config["mask_or_box"]), config["weight"])
    return config


def decoding_to_config(decoding: Decoding | str | None) -> dict[str, Any] | str | None:
    """Return the arguments of ``decoding``, or its name.

    Raises:
        TypeError: One of the arguments is a decoder, whose weights a config does not hold.
    """
    if not isinstance(decoding, Decoding):
        return decoding
    if decoding.decoder is not None:
        raise TypeError(
            f"a config holds no weights: decoding.decoder, a {type(decoding.decoder).__name__}, cannot be saved. "
            "Save without it, and set it after loading"
        )
    dtype = decoding.dtype and str(decoding.dtype).removeprefix("torch.")
    plain = {each.name: getattr(decoding, each.name) for each in fields(decoding) if each.name != "decoder"}
    return {**plain, "dtype": dtype}


def decoding_from_config(config: dict[str, Any] | str | None) -> Decoding | str | None:
    """Make a decoding from what :func:`decoding_to_config` returned."""
    if not isinstance(config, dict):
        return config
    config = {**config, "dtype": config["dtype"] and getattr(torch, config["dtype"])}
    if "pictures" in config:  # the name of ``images`` in what was saved before
        config["images"] = config.pop("pictures")
    return Decoding(**config)


def mode_to_config(mode: str | Mode | None) -> str | dict[str, Any] | None:
    """Return the mode's name, None as it is, or a mode's parameters with the name of its class.

    Raises:
        TypeError: The mode's class would not be found again, or it holds a tower.
    """
    if isinstance(mode, str | None):
        return mode
    name = type(mode).__name__
    if type(mode) not in _MODES:
        raise TypeError(
            f"{name}, the mode, cannot be saved: expected the name of a mode or one of the classes "
            f"{', '.join(each.__name__ for each in _MODES)}"
        )
    if getattr(mode, "tower", None) is not None:
        raise TypeError(
            f"a config does not hold weights, as the tower of mode {name} has: save the tower in the folder "
            f"{FOLDER!r} of the CLIP's, where {name}() finds it"
        )
    return {"_class_name": name, **vars(mode)}


def mode_from_config(config: str | Mode | dict[str, Any] | None) -> str | Mode | None:
    """Make a mode from what :func:`mode_to_config` returned.

    Raises:
        ValueError: The config names no class of this package.
    """
    if not isinstance(config, dict):
        return config
    found = {each.__name__: each for each in _MODES}
    name = config.get("_class_name")
    if name not in found:
        raise ValueError(f"the mode was {name}; expected one of {', '.join(found)}")
    return found[name](**{key: value for key, value in config.items() if key != "_class_name"})


def guider_to_config(guider: Any, own: type) -> dict[str, Any] | None:
    """Return the guider's own config with the name of its class.

    Args:
        guider: The guider; None for none.
        own: The class of this package that may stand in a config, beside those of diffusers: ``CLIPGuidance``.

    Raises:
        TypeError: The guider cannot be saved, or its class would not be found again.
    """
    if guider is None:
        return None
    config = json.loads(guider.to_json_string())
    if _guider_class(config["_class_name"], own) is not type(guider):
        raise TypeError(
            f"{type(guider).__name__}, the guider inside, cannot be saved: expected a CLIPGuidance or a class of "
            "diffusers.guiders, which is found by its name"
        )
    return config


def guider_from_config(config: dict[str, Any] | None, own: type) -> Any:
    """Make a guider from what :func:`guider_to_config` returned.

    Args:
        config: The config; None for no guider.
        own: The class of this package that may stand in a config, beside those of diffusers: ``CLIPGuidance``.

    Raises:
        ValueError: The config names no such class.
    """
    if config is None:
        return None
    cls = _guider_class(config["_class_name"], own)
    if cls is None:
        raise ValueError(
            f"the guider inside was a {config['_class_name']}; expected CLIPGuidance or a class of diffusers.guiders"
        )
    return cls.from_config(config)


def _guider_class(name: str, own: type) -> Any:
    if name == own.__name__:
        return own
    found = getattr(guiders, name, None)
    return found if isinstance(found, type) and issubclass(found, guiders.BaseGuidance) else None
