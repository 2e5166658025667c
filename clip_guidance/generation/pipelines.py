"""Load a stock diffusers pipeline: a packaged one, from a folder or from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import snapshot_download

from clip_guidance._tensors import as_dtype, check_device
from clip_guidance.clip import CLIP, ModelError
from clip_guidance.clip.hub import (
    PACKAGED,
    HubOptions,
    Place,
    check_packaged,
    find_place,
    packaged_models,
    read_model_json,
    reject_options,
    reject_pickles,
)
from clip_guidance.clip.load import as_model_errors

# What DiffusionPipeline.from_pretrained takes besides the components of a pipeline and what load_pipeline names.
DIFFUSERS_OPTIONS = (
    *("variant", "custom_pipeline", "custom_revision", "trust_remote_code", "load_connected_pipeline"),
    *("force_download", "proxies", "quantization_config", "low_cpu_mem_usage", "disable_mmap"),
    *("max_memory", "offload_folder", "offload_state_dict"),
)
NAMES = (
    *("device", "dtype", "torch_dtype", "revision", "token", "cache_dir", "local_files_only", "subfolder"),
    *DIFFUSERS_OPTIONS,
)
READ_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")  # of a subfolder on the hub; no pickles


def load_pipeline(
    name_or_path: str | Path = "emoji",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    **kwargs: Any,
) -> DiffusionPipeline:
    """Load a text-to-image pipeline of diffusers.

    Args:
        name_or_path: A packaged pipeline ("emoji"), a folder that diffusers saved (or "local-dir:folder"), or a hub id
            (or "hf-hub:owner/name").
        device: Where the pipeline is put.
        dtype: Precision of all parts, in place of the one they are stored in.
        revision: Branch, tag or commit of a repository on the hub; by default its main branch.
        token: Access token for the hub; by default the one that ``hf auth login`` stored.
        cache_dir: Folder of downloads; by default the hub's.
        local_files_only: Whether only what was downloaded before is read.
        subfolder: Folder of the pipeline inside the folder or repository.
        kwargs: ``torch_dtype`` stands for ``dtype``. The components of the pipeline (``scheduler``,
            ``safety_checker`` ...) and the other options of ``DiffusionPipeline.from_pretrained`` (``variant`` ...) are
            passed to it.

    Returns:
        A stock pipeline. That of a packaged model is a ``StableDiffusionPipeline`` whose text encoder is the text tower
        of the CLIP of the same name (stored once, as a ``CLIPTextModel``).

    Raises:
        ModelError: There is no such pipeline, or its weights are pickled.
        TypeError: ``kwargs`` hold an option that neither diffusers nor the pipeline has.
        ValueError: There is no such dtype or device, ``kwargs`` are given for a packaged pipeline, which takes none, or
            a ``revision`` for a pipeline that is not on the hub.

    Example:
        >>> pipe = load_pipeline("emoji")
        >>> type(pipe).__name__
        'StableDiffusionPipeline'
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pipe("a twemoji picture of a red apple", num_inference_steps=2).images[0].size
        (64, 64)
    """
    device, dtype = check_device(device), as_dtype(kwargs.pop("torch_dtype", None) or dtype)
    options = HubOptions(revision, token, cache_dir, local_files_only, subfolder)
    name = str(name_or_path)
    if name in packaged_models():
        check_packaged(name, options)
        reject_options("load_pipeline", kwargs, NAMES)
        if kwargs:
            raise ValueError(f"{name} is packaged and takes no further options, got {', '.join(kwargs)}")
        return _moved(_packaged(name), device, dtype)
    return _moved(_stock(find_place(name, "pipeline", "model_index.json", options), kwargs), device, dtype)


def _stock(place: Place, kwargs: dict[str, Any]) -> DiffusionPipeline:
    """Load a pipeline as diffusers does."""
    index = read_model_json(place, "model_index.json")
    reject_options("load_pipeline", kwargs, (*NAMES, *(name for name in index if not name.startswith("_"))))
    with as_model_errors(place.name):
        folder = _folder(place)
        for component in sorted(folder.glob("*/")) if folder else ():
            reject_pickles(component)
        if folder is not None:
            return DiffusionPipeline.from_pretrained(folder, use_safetensors=True, **kwargs)
        options = {name: value for name, value in place.options.items() if name != "subfolder"}
        return DiffusionPipeline.from_pretrained(place.path, use_safetensors=True, **options, **kwargs)


def _folder(place: Place) -> Path | None:
    """Return the folder of a pipeline; None for a whole repository on the hub, which diffusers fetches itself."""
    if not place.options:
        return Path(place.path)
    if not (subfolder := place.options["subfolder"]):
        return None
    patterns = [f"{subfolder}/{pattern}" for pattern in READ_FILES]
    options = {name: value for name, value in place.options.items() if name != "subfolder"}
    return Path(snapshot_download(place.path, allow_patterns=patterns, **options), subfolder)


def _moved(pipeline: DiffusionPipeline, device: str | torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    """Move a pipeline; parts that have the precision already are skipped, else diffusers warns."""
    pipeline.to(device)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module) and next((p.dtype for p in part.parameters()), dtype) != dtype:
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
