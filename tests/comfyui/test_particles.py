"""The particle node patches a SAMPLER so that the images are those of particles attached to a pipeline of diffusers."""

import copy
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from helpers.comfyui import EPS, SCALE, Patcher, load_nodes, make_vae, part
from helpers.factories import TinyCLIP

import clip_guidance as cg

SIGMAS = torch.tensor([9.0, 4.0, 1.5, 0.6, 0.2, 0.0])
DEFAULTS = {
    "prompt": "a red apple", "k": 3, "resample_at": "0.4, 0.7", "potential": "best", "strength": 300.0, "seed": 0,
}  # fmt: skip


class Model:
    """What a sampler of ComfyUI is given: x and the noise level to the clean prediction."""

    def __init__(self, patcher):
        self.inner_model, self.patcher = SimpleNamespace(inner_model=patcher.model), patcher

    def __call__(self, x, sigma):
        sampling, network = self.patcher.model.model_sampling, self.patcher.model.network
        return sampling.denoised(sigma, network(sampling.scaled(sigma, x), sigma), x)


def euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    for step, (now, then) in enumerate(pairwise(sigmas)):
        denoised = model(x, now)
        callback({"x": x, "i": step, "sigma": now, "denoised": denoised})
        x = x + (x - denoised) / now * (then - now)
    return x


def ancestral(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Draw the clean prediction noised anew, with the noise of a seed that each call begins with."""
    generator = torch.Generator().manual_seed(extra_args["seed"])
    for step, (now, then) in enumerate(pairwise(sigmas)):
        denoised = model(x, now)
        callback({"x": x, "i": step, "sigma": now, "denoised": denoised})
        x = denoised + then * torch.randn(x.shape, generator=generator)
    return x


def guide():
    torch.manual_seed(2)
    return TinyCLIP()


def patched(function=euler, vae=None, **options):
    node = load_nodes().NODE_CLASS_MAPPINGS["ClipGuidanceParticles"]()
    sampler = SimpleNamespace(sampler_function=function)
    (found,) = node.patch(sampler, guide(), vae or make_vae(), **{**DEFAULTS, **options})
    assert sampler.sampler_function is function
    return found.sampler_function


def run(function=euler, batch=6, callback=None, **options):
    noise = torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        return patched(function, **options)(Model(Patcher(EPS())), 9 * noise, SIGMAS, {"seed": 1}, callback, True)


@pytest.mark.parametrize("potential", ["best", "difference", "max"])
@pytest.mark.filterwarnings("ignore:copies of a particle stay equal")
def test_the_samples_are_those_of_particles_that_are_attached(potential):
    model, decoder = Patcher(EPS()), copy.deepcopy(make_vae().first_stage_model)
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(len(SIGMAS) - 1)
    scheduler.sigmas = SIGMAS
    pipe, network = SimpleNamespace(scheduler=scheduler, unet=model.model.network), model.model.network
    particles = cg.Particles(
        part("guide").as_reward(guide(), "a red apple"),
        3,
        resample_at=(0.4, 0.7),
        potential=potential,
        scale=None if potential == "best" else 300.0,
        to_image=lambda x0: ((decoder.decode(x0 / SCALE) + 1) / 2).clamp(0, 1),
    )
    with particles.attach(pipe), torch.no_grad():
        x = 9 * torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(5))
        for sigma, timestep in zip(SIGMAS, scheduler.timesteps, strict=False):
            x = scheduler.step(network(EPS().scaled(sigma, x), sigma), timestep, x).prev_sample
    assert {tuple(each.parents.flatten().tolist()) for each in particles.result.resamplings} != {(0, 1, 2, 0, 1, 2)}
    assert torch.allclose(run(potential=potential), x, atol=1e-5)


def test_steps_are_counted_on_and_each_stretch_has_its_own_noise():
    seen = []
    first = run(ancestral, callback=lambda state: seen.append(state["i"]), resample_at="0.4", potential="sum")
    assert seen == [0, 1, 2, 3, 4]
    assert run(ancestral, resample_at="0.4", potential="sum").equal(first)
    seed_of = part("particles")._seed
    assert len({1, *(seed_of(1, start) for start in range(1, 9))}) == 9
    assert seed_of(None, 2) is None


def test_copies_that_stay_equal_are_told():
    with pytest.warns(UserWarning, match="copies of a particle stay equal, since this sampler adds no noise"):
        run(potential="difference", strength=3000.0)


def silent(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return x


@pytest.mark.parametrize(
    ("function", "batch", "options", "message"),
    [
        (euler, 4, {}, "k=3 needs a batch of k latents for each group, got a batch of 4"),
        (silent, 6, {}, "this sampler does not report its clean predictions"),
        (None, 6, {}, "expected a sampler that is a function of noise levels, got SimpleNamespace"),
        (euler, 6, {"vae": make_vae(16)}, "the VAE decodes latents of 16 channels, those of the model"),
    ],
)
def test_what_cannot_work_is_refused_by_the_node(function, batch, options, message):
    with pytest.raises(ValueError, match=message):
        run(function, batch, **options)


def test_shares_of_the_run_are_validated_before_the_graph_runs():
    node = load_nodes().NODE_CLASS_MAPPINGS["ClipGuidanceParticles"]
    assert node.VALIDATE_INPUTS("0.2, .5") is True
    expected = "resample_at must be shares of the run in (0, 1), as 0.2, 0.5; got '0.2; 1'"
    assert node.VALIDATE_INPUTS("0.2; 1") == expected
    assert node.VALIDATE_INPUTS(" ") == "resample_at names no share of the run"
