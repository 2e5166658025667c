"""Read ``preprocessor_config.json``: what the class of ``transformers`` that it names does to an image.

The class itself reads the sizes, in any of the forms that its versions wrote, and sets what is left out. A class that
does no more than the steps that all have in common is read, whatever its name is:

    resize -> crop of the centre -> times rescale_factor -> minus mean, over deviation

The last two are one affine map of each channel. ALIGN's EfficientNet has two steps more of that kind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from transformers import EfficientNetImageProcessorPil
from transformers.image_processing_backends import PilBackend

MOST_VALUE = 1e6  # of means and deviations, which are of pixels in [0, 1]
_COMMON = ("_preprocess", "process_image", "resize", "center_crop", "rescale", "normalize")


@dataclass(frozen=True)
class Steps:
    """What is done to an image; the fields are those of ``ImageProcessor``."""

    image_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    resize_to: int | tuple[int, int]
    resample: int


def read_steps(config: Mapping[str, Any]) -> Steps:
    """Read what ``preprocessor_config.json`` or ``processor_config.json`` hold.

    Raises:
        ValueError: It is damaged, or asks for something other than resizing, a square crop of the centre and an affine
            map of the channels.
    """
    theirs = _read_by_transformers(config.get("image_processor", config))
    for step in ("do_resize", "do_rescale"):
        if not getattr(theirs, step):
            raise ValueError(f"{step} is false, which no CLIP's preprocessing is")
    if getattr(theirs, "do_pad", None):
        raise ValueError("do_pad is true, which no CLIP's preprocessing is")
    size = theirs.size
    crop = theirs.crop_size if theirs.do_center_crop else size
    if not crop.height or crop.height != crop.width:
        cut = "crop_size" if theirs.do_center_crop else "do_center_crop is false, size"
        raise ValueError(f"{cut}: expected a square of height and width, got {_given(crop)!s:.80}")
    if given := set(_given(size)) - {"shortest_edge", "height", "width"}:
        raise ValueError(f"size: expected shortest_edge, or height and width, got {', '.join(sorted(given))}")
    resize_to = (size.height, size.width) if size.height and size.width else size.shortest_edge
    mean, std = _affine(theirs)
    resample = getattr(theirs.resample, "value", theirs.resample)  # where it is left out, PIL's enumeration
    return Steps(crop.height, mean, std, resize_to, resample)


def _read_by_transformers(config: Any) -> Any:
    """Read preprocessing as the class that it names does.

    Raises:
        ValueError: It names a class that does something else, or values that the class cannot read.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"image_processor: expected a JSON object, got {config!r:.60}")
    cls = _named(config.get("image_processor_type") or config.get("feature_extractor_type") or "CLIPImageProcessor")
    known = {key: value for key, value in config.items() if key in cls.valid_kwargs.__annotations__}
    try:
        return cls(**known)
    except Exception as error:  # of any kind, according to what was given
        raise ValueError(f"not readable by transformers: {error!s:.160}") from error


def _named(name: Any) -> Any:
    """Return the class of a name, which may be that of any backend and version; it is read without torchvision."""
    found = None
    if isinstance(name, str) and (stem := re.fullmatch(r"(\w+?)(ImageProcessor|FeatureExtractor)(Fast|Pil)?", name)):
        found = getattr(transformers, f"{stem[1]}ImageProcessorPil", None)
    if isinstance(found, type) and issubclass(found, PilBackend):
        if all(getattr(found, step) is getattr(PilBackend, step) for step in _COMMON):
            return found
        if found is EfficientNetImageProcessorPil:
            return found
    raise ValueError(
        f"expected a class that resizes, crops and normalises, such as CLIPImageProcessor, got {name!r:.60}"
    )


def _affine(theirs: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the deviation of each channel, for values in [0, 1], of all that follows the crop."""
    if type(theirs.rescale_factor) not in (int, float) or not 0 < theirs.rescale_factor < MOST_VALUE:
        raise ValueError(f"rescale_factor: expected a number above 0, got {theirs.rescale_factor!r:.60}")
    unit = 255 * theirs.rescale_factor  # what white becomes
    unit = 1.0 if math.isclose(unit, 1) else unit
    zeros, ones = (0.0,) * 3, (1.0,) * 3
    std = _per_channel("image_std", theirs.image_std) if theirs.do_normalize else ones
    mean = _per_channel("image_mean", theirs.image_mean) if theirs.do_normalize else zeros
    if isinstance(theirs, EfficientNetImageProcessorPil):
        if theirs.rescale_offset:
            mean = tuple(value + 1 for value in mean)
        if theirs.include_top:
            std = tuple(a * b for a, b in zip(std, _per_channel("image_std", theirs.image_std), strict=True))
    return tuple(value / unit for value in mean), tuple(value / unit for value in std)


def _per_channel(name: str, values: Any) -> tuple[float, ...]:
    """Return one number per channel; where one number is given, it is that of every channel.

    Raises:
        ValueError: ``values`` are no numbers.
    """
    values = values if isinstance(values, list | tuple) else [values] * 3
    if any(type(value) not in (int, float) or not abs(value) < MOST_VALUE for value in values):
        raise ValueError(f"{name}: expected numbers, got {values!s:.60}")
    return tuple(float(value) for value in values)


def _given(size: Any) -> dict[str, Any]:
    """Return the sides that a size of transformers names."""
    return {name: value for name, value in dict(size).items() if value is not None}
