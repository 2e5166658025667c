"""What is known of a pipeline is looked up once, when guidance is attached."""

from types import SimpleNamespace

import pytest
from diffusers import DDIMInverseScheduler, EulerDiscreteScheduler
from helpers.minimal_pipeline import brightness, loop, minimal_pipeline, modes
from torch import nn

from clip_guidance.guidance import Guidance, UnsupportedSchedulerError
from clip_guidance.guidance.adapters.prediction import PREDICTION_TYPES
from clip_guidance.guidance.adapters.schedulers import noise_level
from clip_guidance.guidance.engine import decoder, host
from clip_guidance.guidance.engine.host import resolve


def test_a_host_holds_the_scheduler_its_levels_and_the_networks():
    pipe = SimpleNamespace(scheduler=EulerDiscreteScheduler(), unet=nn.Identity(), controlnet=nn.Identity())
    found = resolve(pipe)
    assert found.pipe is pipe and found.scheduler is pipe.scheduler
    assert found.prediction_type is PREDICTION_TYPES["epsilon"]
    assert found.denoisers == [pipe.unet] and found.readers == [pipe.unet, pipe.controlnet]
    pipe.scheduler.set_timesteps(4)
    timestep = pipe.scheduler.timesteps[0]
    assert found.noise_level(timestep) == noise_level(pipe.scheduler, timestep)


def test_both_denoisers_of_a_pipeline_are_found():
    pipe = SimpleNamespace(scheduler=EulerDiscreteScheduler(), transformer=nn.Identity(), transformer_2=nn.Identity())
    assert resolve(pipe).denoisers == [pipe.transformer, pipe.transformer_2]


@modes
def test_a_pipeline_is_looked_up_once(monkeypatch, mode):
    calls = []

    def counted(module, name):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: calls.append(name) or original(*args))

    for name in ("find_scheduler_adapter", "find_adapter"):
        counted(host, name)
    counted(decoder, "find_adapter")
    pipe = minimal_pipeline()
    with Guidance(brightness, mode=mode, space="latent").attach(pipe):
        loop(pipe)
    assert sorted(calls) == ["find_adapter", "find_scheduler_adapter"]


@pytest.mark.parametrize(
    ("pipe", "error", "message"),
    [
        (SimpleNamespace(unet=nn.Identity()), ValueError, "needs a pipeline with a scheduler; .* holds unet"),
        (SimpleNamespace(scheduler=EulerDiscreteScheduler()), ValueError, "needs a denoiser, a module named"),
        (
            SimpleNamespace(scheduler=DDIMInverseScheduler(), unet=nn.Identity()),
            UnsupportedSchedulerError,
            "DDIMInverseScheduler cannot be guided",
        ),
    ],
)
def test_what_cannot_be_guided_is_refused(pipe, error, message):
    with pytest.raises(error, match=message):
        resolve(pipe)
