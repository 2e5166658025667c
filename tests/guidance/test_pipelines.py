"""Every pipeline of diffusers that can be guided: unguided, with scale 0, and guided by a simple reward."""

import functools
import inspect

import pytest
import torch
from helpers.pipeline_zoo import (
    LAST_STEP,
    NO_EXACT,
    NO_LATENTS,
    SCALES,
    TOLERANCES,
    built,
    each_pipeline,
    mean_redness,
    redness,
    run,
    unguided,
)

from clip_guidance.guidance import Guidance
from clip_guidance.guidance.adapters.call_stack import PipelineCall
from clip_guidance.guidance.adapters.size import Size
from clip_guidance.guidance.engine.decoder import Decoder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),  # of diffusers' own parts
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),  # Mochi's wants float32
    pytest.mark.filterwarnings("ignore:guidance changed nothing in a run:UserWarning"),  # of a reward that is constant
]
pipelines = each_pipeline()


@pytest.mark.slow
@pipelines
def test_scale_zero_is_bit_identical(key):
    pipe, _ = built(key)
    plain = unguided(key)
    with Guidance(redness, scale=0.0).attach(pipe):
        assert run(key).equal(plain)


@pytest.mark.slow
@pipelines
def test_images_for_the_reward_are_the_pipelines_own(key):
    found = (read_at_last_step if key in LAST_STEP else decoded)(key)
    expected = unguided(key)
    expected = expected if expected.ndim == found.ndim else expected[None]
    torch.testing.assert_close(found, expected, atol=TOLERANCES.get(key, 1e-4), rtol=0)


def read_at_last_step(key):
    """What the reward reads at the last step, whose prediction is the sample that the pipeline decodes."""
    seen = []

    def indifferent(images):
        seen.append(images)
        return 0 * images.flatten(1).sum(1)

    with Guidance(indifferent).attach(built(key)[0]):
        run(key)
    frames = seen[-1].detach()
    return frames if unguided(key).ndim == 4 else frames[None]


def decoded(key):
    """The pipeline's latents, decoded for the reward."""
    pipe, _ = built(key)
    latents = last_latents(key) if key in NO_LATENTS else run(key, output_type="latent")
    with torch.no_grad():
        call = PipelineCall(pipe, Size(*unguided(key).shape[-2:]))
        images = Decoder(pipe, "image")(latents, call)[:1]  # DiT's latents are twofold
    return images.transpose(1, 2) if images.ndim == 5 else images  # as pipelines have frames


def last_latents(key):
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


@pytest.mark.parametrize("mode", [pytest.param("x0", marks=pytest.mark.slow), "exact"])
@pipelines
def test_the_reward_of_the_images_rises(key, mode):
    pipe, _ = built(key)
    if mode == "exact" and key in NO_EXACT:
        with pytest.raises(ValueError, match=r"mode='x0'"), Guidance(redness, mode=mode).attach(pipe):
            run(key)
        return
    with Guidance(redness, scale=SCALES.get(key, 100.0), mode=mode).attach(pipe):
        guided = run(key)
    assert guided.isfinite().all()
    assert mean_redness(guided) > mean_redness(unguided(key)) + 1e-4
    assert run(key).equal(unguided(key))
