"""Tiny modular pipelines and the guiders that a guidance may go around, for the guider tests."""

import functools

import pytest
import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)
from diffusers.hooks import LayerSkipConfig

from helpers.pipelines import modular

modes = pytest.mark.parametrize("mode", ["x0", "exact"])
SDXL, SD3, QWEN, WAN, Z_IMAGE = (
    f"{name}ModularPipeline" for name in ("StableDiffusionXL", "StableDiffusion3", "QwenImage", "Wan", "ZImage")
)
#: Flux's are distilled, and Ideogram's have a network for each of its two predictions: they have no guider.
KEYS = [key for key in modular.PIPELINES if not key.startswith(("Flux", "Ideogram4"))]
SCALE = 300.0


def perturbed(fqn="auto"):
    config = LayerSkipConfig([0], fqn, skip_attention=False, skip_attention_scores=True, skip_ff=False)
    window = {"perturbed_guidance_start": 0.0, "perturbed_guidance_stop": 1.0}
    return PerturbedAttentionGuidance(3.0, 2.0, perturbed_guidance_config=config, **window)


def skipping():
    window = {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    return SkipLayerGuidance(3.0, 2.0, skip_layer_config=LayerSkipConfig([0]), **window)


GUIDERS = {
    "alone": lambda: None,
    "cfg": lambda: ClassifierFreeGuidance(3.0),
    "apg": lambda: AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_momentum=-0.5),
    "pag": perturbed,
    "pag of sdxl": lambda: perturbed("mid_block.attentions.0.transformer_blocks"),
    "slg": skipping,
}


def stock(guider):
    """What a pipeline has in place of a guidance that goes around ``guider``."""
    return GUIDERS[guider]() or ClassifierFreeGuidance(1.0)


@functools.cache
def _built(key):
    """A pipeline, its inputs, and the guider that it has at first."""
    pipe, inputs = modular.PIPELINES[key]()
    return pipe, inputs, getattr(pipe, "guider", None)


def built(key):
    """A pipeline with its inputs; tests share it, and each is given it with the guider that it had at first."""
    pipe, inputs, guider = _built(key)
    if hasattr(pipe, "guider"):
        pipe.update_components(guider=guider)
    return pipe, inputs


def run(pipe, inputs, **guiders):
    """The images (B, 3, H, W) or (B, F, 3, H, W) in [0, 1]."""
    pipe.update_components(**guiders)
    inputs["generator"].manual_seed(0)
    torch.manual_seed(0)
    state = pipe(**inputs)
    found = state.get("images", state.get("videos"))
    while isinstance(found, (list, tuple)):
        found = found[0]
    return found


def redness(images):
    """20 × (red − blue), a number an image."""
    return 20 * (images[:, 0] - images[:, 2]).flatten(1).mean(1)


def mean_redness(images):
    """Of all images or frames together."""
    return redness(images.double().flatten(0, -4)).mean()


def untouched(pipe):
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    assert torch.is_grad_enabled()
    assert "step" not in vars(pipe.scheduler)
    assert "forward" not in vars(denoiser) and not denoiser._forward_pre_hooks and not denoiser._forward_hooks
    assert all(p.requires_grad for part in (denoiser, pipe.vae) for p in part.parameters())
