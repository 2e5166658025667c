"""Every pipeline of diffusers that can be guided: built from tiny parts, run unguided, with scale 0, and guided."""

import functools
import importlib
import inspect

import pytest
import torch
from diffusers.modular_pipelines import PipelineState

from clip_guidance.guidance import Guidance
from clip_guidance.guidance.adapters import Size
from clip_guidance.guidance.decode import Decoder

MODULES = ("unet_sd unet_sdxl unet_other dit_classic sd3 flux sana qwen_and_friends new_dits video modular").split()
BUILDERS = [importlib.import_module(f"pipelines.{name}") for name in MODULES if not name.startswith("unet")]
PIPELINES = {key: build for module in BUILDERS for key, build in module.PIPELINES.items()}
NO_LATENTS = {key: why for module in BUILDERS for key, why in getattr(module, "NO_LATENTS", {}).items()}
NO_EXACT = {key: why for module in BUILDERS for key, why in getattr(module, "NO_EXACT", {}).items()}
SCALE = 100.0

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),  # of diffusers' own parts
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]
pipelines = pytest.mark.parametrize("key", PIPELINES)


def redness(pictures):
    """20 × (red − blue), a number a picture."""
    return 20 * (pictures[:, 0] - pictures[:, 2]).flatten(1).mean(1)


@functools.cache
def built(key):
    return PIPELINES[key]()


def run(key, **options):
    """The pictures (B, 3, H, W) in [0, 1], or whatever the pipeline returns for another ``output_type``."""
    pipe, inputs = built(key)
    inputs["generator"].manual_seed(0)
    torch.manual_seed(0)
    return pictures_of(pipe(**{**inputs, **options}))


def pictures_of(output):
    if isinstance(output, PipelineState):
        output = [output.get("images", output.get("videos"))]
    found = output[0]
    while isinstance(found, (list, tuple)):
        found = found[0]
    return found


@functools.cache
def unguided(key):
    return run(key)


@pipelines
def test_scale_zero_is_bit_identical(key):
    pipe, _ = built(key)
    plain = unguided(key)
    with Guidance(redness, scale=0.0).attach(pipe):
        assert run(key).equal(plain)


@pipelines
def test_pictures_for_the_reward_are_the_pipelines_own(key):
    pipe, _ = built(key)
    latents = last_sample(key) if key in NO_LATENTS else run(key, output_type="latent")
    with torch.no_grad():
        decoded = Decoder(pipe, "image")(latents, Size(*unguided(key).shape[-2:]))[:1]  # DiT's latents are twofold
    torch.testing.assert_close(decoded, as_pictures(unguided(key), decoded), atol=1e-4, rtol=0)


def last_sample(key):
    """The latents after the last step, for pipelines that hand out none."""
    pipe, _ = built(key)
    samples = []
    if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:
        run(key, callback_on_step_end=lambda pipe, i, t, tensors: samples.append(tensors["latents"]) or {})
        return samples[-1]
    step = pipe.scheduler.step

    @functools.wraps(step)
    def record(*args, **kwargs):
        output = step(*args, **kwargs)
        samples.append(output[0] if isinstance(output, tuple) else output.prev_sample)
        return output

    pipe.scheduler.step = record
    run(key)
    del pipe.scheduler.step
    return samples[-1]


def as_pictures(pictures, like):
    """Frames (B, F, 3, H, W) as the decoder has them, (B, 3, F, H, W)."""
    pictures = pictures if pictures.ndim == like.ndim else pictures[None]
    return pictures.transpose(1, 2) if pictures.ndim == 5 else pictures


@pytest.mark.parametrize("mode", ["x0", "exact"])
@pipelines
def test_the_reward_of_the_pictures_rises(key, mode):
    pipe, _ = built(key)
    if mode == "exact" and key in NO_EXACT:
        with pytest.raises(ValueError, match=r"mode='x0'"), Guidance(redness, mode=mode).attach(pipe):
            run(key)
        return
    with Guidance(redness, scale=SCALE, mode=mode).attach(pipe):
        guided = run(key)
    before, after = (redness(frames(pictures)).mean() for pictures in (unguided(key), guided))
    assert guided.isfinite().all()
    assert after > before + 1e-4


def frames(pictures):
    """(B, 3, H, W) of pictures or of a video's frames."""
    return pictures.flatten(0, -4) if pictures.ndim > 4 else pictures
