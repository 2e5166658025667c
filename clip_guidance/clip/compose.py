"""Read the ``Compose`` of torchvision that open_clip makes, without torchvision: its parts say what they do.

Resize(S), CenterCrop(S), to RGB, ToTensor, Normalize(mean, std)              the shorter side
Resize((S, S)), to RGB, ToTensor, Normalize                                   stretched
ResizeKeepRatio(S, longest=1), CenterCropOrPad(S), to RGB, ToTensor, Normalize    the longer side, padded
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clip_guidance.clip.image_processor import RESAMPLING, ImageProcessor

# Parts that change no pixel of an image in RGB but its type: values in [0, 1].
_CONVERSIONS = ("_convert_to_rgb", "ToTensor", "MaybeConvertMode", "MaybeToTensor")


def read_compose(compose: Any) -> ImageProcessor | None:
    """Return the preprocessing that a ``Compose`` does; None where a part of it is of another kind.

    Args:
        compose: An object whose ``transforms`` are the parts, in order.

    Example:
        >>> from types import SimpleNamespace
        >>> from clip_guidance.clip.compose import read_compose
        >>> class Resize:
        ...     size, interpolation = (32, 32), "bilinear"
        >>> class ToTensor:
        ...     pass
        >>> read_compose(SimpleNamespace(transforms=[Resize(), ToTensor()])).resize_to
        (32, 32)
    """
    found: dict[str, Any] = {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3, "round_crop": True}
    parts = getattr(compose, "transforms", None)
    if not isinstance(parts, Sequence):
        return None
    for part in parts:
        name = getattr(part, "__name__", type(part).__name__)
        if name == "Resize" and getattr(part, "max_size", None) is None:
            sides = _sides(part.size)
            found |= {"resize_to": sides[0] if len(sides) == 1 else tuple(sides), "resample": _resample(part)}
        elif name == "ResizeKeepRatio" and getattr(part, "longest", None) == 1:
            found |= {"pad": True, "resample": _resample(part)}
        elif name in ("CenterCrop", "CenterCropOrPad") and isinstance(fill := getattr(part, "fill", 0), int):
            found |= {"crop": _sides(part.size), "fill": fill}
        elif name == "Normalize":
            found |= {"image_mean": _numbers(part.mean), "image_std": _numbers(part.std)}
        elif name not in _CONVERSIONS:
            return None
    return _made(found)


def _made(found: dict[str, Any]) -> ImageProcessor | None:
    """Make the preprocessing of what the parts say; None where it is not one that we do."""
    to = found.get("resize_to")
    sides = found.pop("crop", to if isinstance(to, tuple) else None)
    if sides is None or len(set(sides)) != 1 or found.get("resample") is None or not (to or found.get("pad")):
        return None
    if found.get("pad"):
        found["round_crop"] = False  # nothing is cut
    return ImageProcessor(sides[0], **found)


def _sides(size: Any) -> list[int]:
    return [int(side) for side in (size if isinstance(size, Sequence) else [size])]


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _resample(part: Any) -> int | None:
    """Return PIL's number of a part's filter, which is a name or an enumeration of torchvision; None for another."""
    given = getattr(part.interpolation, "value", part.interpolation)
    return next((number for number, name in RESAMPLING.items() if given in (number, name)), None)
