import copy

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from tiny_pipeline import make_scheduler

from clip_guidance.guidance.noise import NoiseLevel, UnsupportedSchedulerError, noise_level, step_index

CONFIGS = [
    ("ddim", {}),
    ("ddim", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}),
    ("euler", {}),
    ("euler", {"use_karras_sigmas": True}),
    ("euler", {"timestep_spacing": "trailing"}),
    ("dpm", {}),
    ("dpm", {"use_karras_sigmas": True}),
    ("dpm", {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}),
]


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_levels_are_those_with_which_the_scheduler_adds_noise(name, config):
    scheduler = make_scheduler(name, **config)
    scheduler.set_timesteps(8)
    one, none = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    for t in scheduler.timesteps:
        level = noise_level(scheduler, t)
        peer = copy.deepcopy(scheduler)  # before its first step the index comes from the timestep
        peer._step_index = None
        assert level.alpha == pytest.approx(peer.add_noise(one, none, t[None]).item(), abs=1e-6)
        assert level.sigma == pytest.approx(peer.add_noise(none, one, t[None]).item(), rel=1e-5)
        scheduler.scale_model_input(one, t)
        scheduler.step(none, t, one)


@pytest.mark.parametrize(("name", "config"), [c for c in CONFIGS if "use_flow_sigmas" not in c[1]])
def test_noise_falls_from_step_to_step(name, config):
    scheduler = make_scheduler(name, **config)
    scheduler.set_timesteps(12)
    ratios = []
    for t in scheduler.timesteps:
        level = noise_level(scheduler, t)
        ratios.append(level.sigma / level.alpha if level.alpha else float("inf"))
        scheduler.scale_model_input(torch.ones(1), t)
        scheduler.step(torch.zeros(1, 1), t, torch.zeros(1, 1))
    assert ratios == sorted(ratios, reverse=True)
    assert len(set(ratios)) == 12


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm"])
def test_step_index_counts_the_steps(name):
    scheduler = make_scheduler(name)
    scheduler.set_timesteps(5)
    indices = []
    for t in scheduler.timesteps:
        indices.append(step_index(scheduler, t))
        scheduler.scale_model_input(torch.ones(1), t)
        scheduler.step(torch.zeros(1, 1), t, torch.zeros(1, 1))
    assert indices == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["euler", "dpm"])
def test_begin_index_counts_before_the_timestep_as_in_the_scheduler(name):
    scheduler = make_scheduler(name)
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(6)
    index = step_index(scheduler, scheduler.timesteps[2])
    scheduler._init_step_index(scheduler.timesteps[2])
    assert index == scheduler.step_index == 6


def test_ddim_at_terminal_zero_snr_is_pure_noise():
    scheduler = make_scheduler("ddim", rescale_betas_zero_snr=True)
    scheduler.set_timesteps(4)
    level = noise_level(scheduler, scheduler.timesteps.new_tensor(999))
    assert level == NoiseLevel(alpha=pytest.approx(0, abs=1e-6), sigma=pytest.approx(1))


def test_a_subclass_belongs_to_the_family_of_its_base():
    class LoggingDDIM(DDIMScheduler):
        pass

    assert noise_level(LoggingDDIM(), 500) == noise_level(DDIMScheduler(), 500)


def test_an_unknown_scheduler_is_refused_by_name():
    with pytest.raises(UnsupportedSchedulerError, match=r"DDIMScheduler.*Euler.*DPM.*is a LCMScheduler"):
        noise_level(LCMScheduler(), 10)
