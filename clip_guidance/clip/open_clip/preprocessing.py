"""Preprocessing as open_clip describes it: the ``preprocess_cfg`` of ``open_clip_config.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from clip_guidance.clip.image_processor import CLIP_MEAN, CLIP_STD, RESAMPLING, ImageProcessor

_FILTERS = {"bicubic": 3, "bilinear": 2, "random": 3}  # PIL's numbers; "random" is for training


def read_preprocessing(cfg: Mapping[str, Any], image_size: int) -> ImageProcessor:
    """Make the preprocessing of a ``preprocess_cfg``; what is left out is open_clip's default.

    Args:
        cfg: The ``preprocess_cfg`` of ``open_clip_config.json``.
        image_size: Side of the images that the model reads, which counts whatever the ``size`` says.

    Raises:
        ValueError: A value is not one that open_clip knows.

    Example:
        >>> from clip_guidance.clip.open_clip.preprocessing import read_preprocessing
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
