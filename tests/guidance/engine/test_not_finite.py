"""A sample that is not finite before guidance: it is named by its step, and costs its own image alone."""

import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from helpers.factories import make_scheduler
from torch import nn

from clip_guidance.guidance import Guidance
from clip_guidance.guidance.methods import DPS, FreeDoM, Tilt

SHAPE = (3, 2, 4)
MODES = ["x0", "exact", DPS(), FreeDoM(rho_without=0.02), Tilt(2)]


class Denoiser(nn.Module):
    def forward(self, sample, timestep):
        return 0.5 * sample


def brightness(x):
    return -(x - 0.5).square().flatten(1).sum(1)


def run(pipe, broken_at=None, which=slice(0), copies=1, steps=4):
    """A loop in which samples become no numbers between two steps, as by a scheduler's root of what is below zero."""
    pipe.scheduler.set_timesteps(steps)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for index, t in enumerate(pipe.scheduler.timesteps):
            if index == broken_at:
                x[which] = torch.nan
            outputs = pipe.unet(torch.cat([x] * copies), t).chunk(copies)
            output = outputs[0] if copies == 1 else outputs[0] + 3 * (1.1 * outputs[1] - outputs[0])
            x = pipe.scheduler.step(output, t, x).prev_sample
    return x


def guided(pipe, mode, *args, **options):
    guidance = Guidance(brightness, mode=mode, space="latent", **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with guidance.attach(pipe):
            copies = 2 if options.get("cap") else 1
            found = run(pipe, *args, copies=copies)
    return found, [str(warning.message) for warning in caught], guidance.report


@pytest.mark.parametrize("options", [{}, {"cap": 0.5}])
@pytest.mark.parametrize("mode", MODES, ids=repr)
def test_it_is_named_by_its_step_and_its_neighbours_are_drawn_as_before(mode, options):
    pipe = SimpleNamespace(scheduler=make_scheduler("ddim"), unet=Denoiser())
    expected, none, _ = guided(pipe, mode, **options)
    found, messages, report = guided(pipe, mode, 2, slice(1, 2), **options)
    assert none == [] and len(messages) == 1 and len(messages[0]) <= 300
    timestep = int(pipe.scheduler.timesteps[2])
    assert re.match(rf"1 of 3 noisy samples are not finite at step 2 \(timestep {timestep}\), before gui", messages[0])
    assert found[1].isnan().all() and found[[0, 2]].equal(expected[[0, 2]])
    assert report.dropped == 2  # at steps 2 and 3


@pytest.mark.parametrize("mode", MODES, ids=repr)
def test_a_whole_batch_of_them(mode):
    pipe = SimpleNamespace(scheduler=make_scheduler("ddim"), unet=Denoiser())
    found, messages, _ = guided(pipe, mode, 0, slice(None))
    assert found.isnan().all()
    assert [message[:53] for message in messages] == ["3 of 3 noisy samples are not finite at step 0 (timest"]


def test_a_denoiser_that_overflows_for_one_sample_costs_that_sample_alone():
    """The correction of classifier-free guidance is read off outputs of which some are no numbers."""

    class Overflowing(Denoiser):
        broken = False

        def forward(self, sample, timestep):
            output = super().forward(sample, timestep)
            if self.broken and int(timestep) < 500:
                output[1] = torch.nan
            return output

    pipe = SimpleNamespace(scheduler=make_scheduler("ddim"), unet=Overflowing())
    expected, _, _ = guided(pipe, "x0", cap=0.5)
    pipe.unet.broken = True
    found, messages, _ = guided(pipe, "x0", cap=0.5)
    assert found[[0, 2]].equal(expected[[0, 2]]) and not found[1].isfinite().any()
    assert [re.sub(r"\d", "#", message)[:30] for message in messages] == [
        "# of # noisy samples are not f",
        "guidance left out # shifts tha",
    ]
