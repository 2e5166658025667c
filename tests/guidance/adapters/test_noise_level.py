import math
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LTXEulerAncestralRFScheduler,
    PNDMScheduler,
    SCMScheduler,
)
from helpers.gaussian import make_pipe, peer_level, sample, set_timesteps, watched
from helpers.scheduler_matrix import ONE_EACH, SETTINGS, matrix, summary

from clip_guidance.guidance.adapters.noise_level import NoiseLevel, UnsupportedSchedulerError, step_index
from clip_guidance.guidance.adapters.schedulers import (
    SCHEDULERS,
    find_scheduler_adapter,
    noise_level,
    num_steps,
    prediction_type,
)
from clip_guidance.guidance.adapters.unsupported import UNSUPPORTED_SCHEDULERS


def exported():
    """Every scheduler of diffusers by name, those included that an optional dependency keeps from loading."""
    names = {*dir(diffusers), *dir(diffusers.schedulers)}
    return {name for name in names if name.endswith("Scheduler") and not name.startswith("Flax")}


def test_every_scheduler_of_diffusers_is_known_or_refused():
    assert exported() - SCHEDULERS.keys() - UNSUPPORTED_SCHEDULERS.keys() == set(), "decide whether these can be guided"
    assert not SCHEDULERS.keys() & UNSUPPORTED_SCHEDULERS.keys()
    assert all(len(reason) > 10 for reason in UNSUPPORTED_SCHEDULERS.values())


@pytest.mark.skipif(diffusers.__version__ < "0.42", reason="the tables name what diffusers 0.42 exports")
def test_the_tables_name_schedulers_that_exist():
    assert (SCHEDULERS.keys() | UNSUPPORTED_SCHEDULERS.keys()) - exported() == set()


def test_every_known_scheduler_is_tested():
    assert {name for name, _, _ in summary()} == SCHEDULERS.keys()
    assert all(predictions for _, predictions, _ in summary())


@matrix()
def test_levels_and_indices_are_the_schedulers_own_at_every_step(setting):
    pipe = make_pipe(setting)
    scheduler, indices = pipe.scheduler, []

    def look(step, output, t, x):
        level = noise_level(scheduler, t)
        assert (level.alpha, level.sigma) == pytest.approx(pipe.unet.level, rel=1e-5, abs=1e-5)
        indices.append(step_index(scheduler, t))
        return step(output)

    for _ in range(2):  # the second run starts from what the first has left behind
        with watched(scheduler, look):
            sample(pipe, 6)
        assert indices == list(range(num_steps(scheduler)))
        indices.clear()


@matrix([setting for setting in ONE_EACH if setting.scheduler != "PNDMScheduler"])  # see below
@pytest.mark.parametrize("begin", [1, 3])
def test_image_to_image_counts_from_where_it_begins(setting, begin):
    scheduler = setting.make()
    t = set_timesteps(scheduler, 5)[begin]
    own = scheduler.index_for_timestep(t) if hasattr(scheduler, "index_for_timestep") else begin
    assert step_index(scheduler, t) == own
    if hasattr(scheduler, "set_begin_index"):
        # Where there is an index, it counts, not the timestep.
        scheduler.set_begin_index(begin)
        level = noise_level(scheduler, t)
        assert step_index(scheduler, scheduler.timesteps[0]) == begin
        assert (level.alpha, level.sigma) == pytest.approx(peer_level(scheduler, begin, t), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("skip_prk_steps", "begins"), [(True, range(9)), (False, range(0, 13, 4))])
def test_pndm_tells_repeated_timesteps_apart_from_wherever_it_begins(skip_prk_steps, begins):
    scheduler, x = PNDMScheduler(skip_prk_steps=skip_prk_steps), torch.zeros(1)
    for begin in begins:  # Runge-Kutta's four calls are a unit
        scheduler.set_timesteps(8)
        indices = []
        for t in scheduler.timesteps[begin:]:
            indices.append(step_index(scheduler, t))
            scheduler.step(x, t, x)
        assert sorted(set(indices)) == indices
        assert indices[0] >= 0 and indices[-1] <= num_steps(scheduler) - 1


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("DDIM epsilon", 6),
        ("PNDM epsilon", 3 * 4 + 3),
        ("PNDM epsilon plms", 6 + 1),
        ("HeunDiscrete epsilon", 2 * 6 - 1),
        ("KDPM2Discrete epsilon", 2 * 6 - 1),
        ("FlowMatchHeunDiscrete flow_prediction", 2 * 6 - 1),
        ("DDPMWuerstchen epsilon", 6),
        ("SCM trigflow", 6),
        ("MiniMaxH3 reversed_flow", 6),
    ],
)
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # KDPM2 under numpy 2
def test_num_steps_counts_every_call_of_a_step(name, calls):
    (setting,) = (setting for setting in SETTINGS if setting.name == name)
    scheduler = setting.make()
    assert len(set_timesteps(scheduler, 6)) == num_steps(scheduler) == calls


def test_num_steps_leaves_out_the_clean_end_of_sigmas_of_ones_own():
    scheduler = LTXEulerAncestralRFScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.7, 0.2, 0.0])
    assert len(scheduler.timesteps) == 4
    assert num_steps(scheduler) == 3


@matrix([*ONE_EACH, *(setting for setting in SETTINGS if setting.note == "karras")])
def test_any_form_of_a_timestep(setting, device):
    scheduler = setting.make()
    t = set_timesteps(scheduler, 6)[2]
    level, kind = noise_level(scheduler, t), prediction_type(scheduler)
    for form in (t.item(), t[None], t.expand(3), t.to(device), t.expand(3).to(device), t.clone().cpu()):
        found = noise_level(scheduler, form)
        assert found == level
        assert kind.output_weight(found) == kind.output_weight(level)
        assert step_index(scheduler, form) == step_index(scheduler, t)


@pytest.mark.parametrize("form", [float, int, lambda t: t.float(), lambda t: t.expand(2).double()])
@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler", "DDIMScheduler", "PNDMScheduler"])
def test_a_whole_timestep_may_be_of_any_type(name, form):
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(4)
    t = scheduler.timesteps[1]
    assert noise_level(scheduler, form(t)) == noise_level(scheduler, t)
    assert noise_level(scheduler, form(t)).timestep == int(t)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DDPMWuerstchenScheduler"])
def test_a_batch_of_different_timesteps_is_refused(name):
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(4)
    with pytest.raises(UnsupportedSchedulerError, match=r"one timestep for the whole batch, got \[\d.*, \d.*\]"):
        noise_level(scheduler, scheduler.timesteps[:2])


@pytest.mark.parametrize(
    "name", ["DDIM epsilon trailing", "EulerDiscrete epsilon karras", "DPMSolverMultistep epsilon"]
)
def test_noise_falls_from_step_to_step(name):
    (pipe,) = (make_pipe(setting) for setting in SETTINGS if setting.name == name)
    ratios = []

    def look(step, output, t, x):
        level = noise_level(pipe.scheduler, t)
        ratios.append(level.sigma / level.alpha)
        return step(output)

    with watched(pipe.scheduler, look):
        sample(pipe, 12)
    assert ratios == sorted(set(ratios), reverse=True)
    assert len(ratios) == 12


@pytest.mark.parametrize(("product", "expected"), [(-6e-8, (0, 1)), (1 + 6e-8, (1, 0)), (0.36, (0.6, 0.8))])
def test_a_product_that_is_rounded_beyond_its_range_is_at_its_end(product, expected):
    scheduler = DDIMScheduler()
    scheduler.alphas_cumprod = torch.full((1000,), product, dtype=torch.float64)
    scheduler.set_timesteps(4)
    level = noise_level(scheduler, 500)
    assert (level.alpha, level.sigma) == pytest.approx(expected, abs=3e-4)


@pytest.mark.parametrize("product", [-0.01, 1.01, math.nan])
def test_a_product_beyond_its_range_is_refused(product):
    scheduler = DDIMScheduler()
    scheduler.alphas_cumprod = torch.full((1000,), product)
    with pytest.raises(UnsupportedSchedulerError, match=r"expected alpha in \[0, 1\] and a finite sigma >= 0, DDIM"):
        noise_level(scheduler, 500)


def test_ddim_at_terminal_zero_snr_is_pure_noise():
    level = noise_level(DDIMScheduler(rescale_betas_zero_snr=True), 999)
    assert level == NoiseLevel(alpha=pytest.approx(0, abs=1e-6), sigma=pytest.approx(1))


def test_what_a_scheduler_rounds_beyond_pure_noise_is_pure_noise():
    scheduler = SCMScheduler()
    scheduler.set_timesteps(2, intermediate_timesteps=None)
    assert math.cos(scheduler.timesteps[0]) < 0
    assert noise_level(scheduler, scheduler.timesteps[0]).alpha == 0
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    scheduler.sigmas[0] = 1 + 2**-23
    assert noise_level(scheduler, scheduler.timesteps[0]).alpha == 0


@pytest.mark.parametrize("sigma", [14.6, -0.5, math.nan, math.inf])
def test_sigmas_of_another_family_are_refused(sigma):
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    scheduler.sigmas[0] = sigma
    message = r"alpha in \[0, 1\] and a finite sigma >= 0, FlowMatchEulerDiscreteScheduler is at alpha=.*, sigma=.* at "
    with pytest.raises(UnsupportedSchedulerError, match=message + r"timestep 1000: are its sigmas spaced"):
        noise_level(scheduler, scheduler.timesteps[0])


@pytest.mark.parametrize("base", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_a_subclass_belongs_to_the_family_of_its_base(base):
    own, derived = base(), type("Logging", (base,), {})()
    own.set_timesteps(3)
    derived.set_timesteps(3)
    assert noise_level(derived, own.timesteps[1]) == noise_level(own, own.timesteps[1])


@pytest.mark.parametrize("name", UNSUPPORTED_SCHEDULERS)
def test_a_refused_scheduler_is_told_why(name):
    scheduler = type("Derived", (type(name, (), {}),), {})()
    with pytest.raises(UnsupportedSchedulerError) as error:
        find_scheduler_adapter(scheduler)
    assert f"{name} cannot be guided: {UNSUPPORTED_SCHEDULERS[name]}. Exchange it before attaching" in str(error.value)


def test_an_unknown_scheduler_is_refused_by_name():
    message = r"levels of .* and \d+ more; the pipeline's scheduler is a SimpleNamespace. Exchange it"
    with pytest.raises(UnsupportedSchedulerError, match=message):
        noise_level(SimpleNamespace(), 10)
