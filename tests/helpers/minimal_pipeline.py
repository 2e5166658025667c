"""A pipeline of a scheduler and a denoiser, and a loop over it: all that guidance needs."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers.factories import make_scheduler

schedulers = pytest.mark.parametrize(
    "scheduler", ["ddim", *(pytest.param(each, marks=pytest.mark.slow) for each in ("euler", "dpm"))]
)
modes = pytest.mark.parametrize("mode", ["x0", "exact"])
#: For what goes through both alike: "exact" does all that "x0" does, and differentiates the denoiser too.
exact_first = pytest.mark.parametrize("mode", [pytest.param("x0", marks=pytest.mark.slow), "exact"])


def brightness(x):
    return -((x - 0.5) ** 2).flatten(1).sum(1)


class Recording:
    """A reward that counts its calls."""

    def __init__(self):
        self.inputs = []

    def __call__(self, x):
        self.inputs.append(x.detach().clone())
        return brightness(x)


class Denoiser(nn.Module):
    def forward(self, sample, timestep):
        return 0.5 * sample


def minimal_pipeline(scheduler="ddim", **config):
    return SimpleNamespace(scheduler=make_scheduler(scheduler, **config), unet=Denoiser())


def loop(pipe, steps=4, shape=(2, 3, 4), dtype=torch.float32):
    pipe.scheduler.set_timesteps(steps)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for t in pipe.scheduler.timesteps:
        x = pipe.scheduler.step(pipe.unet(pipe.scheduler.scale_model_input(x, t), t), t, x).prev_sample
    return x
