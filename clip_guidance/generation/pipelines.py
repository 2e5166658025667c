"""Load a stock diffusers pipeline: a packaged one, from a folder or from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel

from clip_guidance.clip import CLIP
from clip_guidance.clip.hub import PACKAGED, ModelError, check_place, packaged_models, reject_pickles


def load_pipeline(
    name_or_path: str | Path = "emoji",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> DiffusionPipeline:
    """Load a text-to-image pipeline of diffusers.

    Args:
        name_or_path: A packaged pipeline ("emoji"), a folder that diffusers saved, or a hub id.
        device: Where the pipeline is put.
        dtype: Precision of all parts, in place of the one they are stored in.
        kwargs: Passed to ``DiffusionPipeline.from_pretrained`` (``variant``, ``revision`` ...).

    Returns:
        A stock pipeline. That of a packaged model is a ``StableDiffusionPipeline`` whose text encoder is the text tower
        of the CLIP of the same name (stored once, as a ``CLIPTextModel``).

    Raises:
        ModelError: There is no such pipeline, or its weights are pickled.
        ValueError: ``kwargs`` are given for a packaged pipeline, which takes none.

    Example:
        >>> pipe = load_pipeline("emoji")
        >>> type(pipe).__name__
        'StableDiffusionPipeline'
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pipe("a twemoji picture of a red apple", num_inference_steps=2).images[0].size
        (64, 64)
    """
    name = str(name_or_path)
    if name in packaged_models():
        if kwargs:
            raise ValueError(f"{name} is packaged and takes no further options, got {', '.join(kwargs)}")
        return _moved(_packaged(name), device, dtype)
    path = Path(name)
    reject_pickles(path)
    for component in sorted(path.glob("*/")) if path.is_dir() else ():
        reject_pickles(component)
    check_place(name, "pipeline", "model_index.json")
    try:
        pipeline = DiffusionPipeline.from_pretrained(name, use_safetensors=True, **kwargs)
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: a pipeline that cannot be loaded: {error}") from error
    return _moved(pipeline, device, dtype)


def _moved(pipeline: DiffusionPipeline, device: str | torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    """Move a pipeline; parts that have the precision already are skipped, else diffusers warns."""
    pipeline.to(device)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module) and next(part.parameters()).dtype != dtype:
            part.to(dtype)
    return pipeline


def _packaged(name: str) -> StableDiffusionPipeline:
    """Build the pipeline of a packaged model."""
    folder = PACKAGED / name
    if not (folder / "unet").is_dir():
        raise ModelError(f"{name}: a CLIP without a pipeline")
    clip = CLIP.from_pretrained(name)
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True),
        text_encoder=clip.text_encoder.to_clip_text_model(),
        tokenizer=clip.tokenizer,
        unet=UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
