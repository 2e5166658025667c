"""Every pipeline of diffusers that can be guided, built from tiny parts, and a reward that needs no network."""

import dataclasses
import functools
import importlib

import numpy as np
import pytest
import torch
from diffusers.modular_pipelines import PipelineState

from clip_guidance.guidance.adapters import masks
from clip_guidance.guidance.adapters.pipelines import ADAPTERS

MODULES = (
    "dit_classic sd3 flux sana qwen_and_friends new_dits video modular "
    "unet_sd unet_sdxl unet_other unet_pixels unet_video "
    "video_dits hunyuan_video video_wan_vae"
)
BUILDERS = [importlib.import_module(f"helpers.pipelines.{name}") for name in MODULES.split()]
PIPELINES = {key: build for module in BUILDERS for key, build in module.PIPELINES.items()}
#: Why a pipeline gives no latents, or cannot be guided in mode "exact"; what its latents alone do not tell of its
#: images; how strongly to guide it, if not by 100; how closely images agree, if not to 1e-4.
NO_LATENTS, NO_EXACT, LAST_STEP, SCALES, TOLERANCES = (
    {key: value for module in BUILDERS for key, value in getattr(module, name, {}).items()}
    for name in ("NO_LATENTS", "NO_EXACT", "LAST_STEP", "SCALES", "TOLERANCES")
)


def _kind(key):
    """The row of the adapters' table, whatever its masks."""
    row = ADAPTERS.get(key.split(" + ")[0])
    return row and dataclasses.replace(row, made_anew=masks.everywhere, framewise=False)


#: The first pipeline of every second kind of row: the default run has these, --full has all.
_QUICK = [key for key in PIPELINES if key not in LAST_STEP or key == "CogVideoXPipeline"]
DEFAULT = list({_kind(key): key for key in reversed(_QUICK)}.values())[::2]


def each_pipeline():
    """All pipelines as parameters named ``key``."""
    slow = pytest.mark.slow
    return pytest.mark.parametrize("key", [pytest.param(k, marks=[slow] * (k not in DEFAULT)) for k in PIPELINES])


def redness(images):
    """20 × (red − blue) of images (B, 3, H, W), a number an image."""
    return 20 * (images[:, 0] - images[:, 2]).flatten(1).mean(1)


@functools.cache
def built(key):
    """The pipeline, and what it is called with."""
    return PIPELINES[key]()


def run(key, **options):
    """Images (B, 3, H, W) in [0, 1], a video's (B, F, 3, H, W), or latents for ``output_type="latent"``."""
    pipe, inputs = built(key)
    inputs["generator"].manual_seed(0)
    torch.manual_seed(0)
    output = pipe(**{**inputs, **options})
    if isinstance(output, PipelineState):
        output = [output.get("images", output.get("videos"))]
    found = output[0]
    while isinstance(found, (list, tuple)):
        found = found[0]
    if isinstance(found, np.ndarray):  # older pipelines know no "pt"
        found = torch.from_numpy(found).movedim(-1, 1)
    return found


@functools.cache
def unguided(key):
    return run(key)


def mean_redness(images):
    """Of images, or of all frames of a video."""
    return redness(images.flatten(0, -4) if images.ndim > 4 else images).mean().item()
