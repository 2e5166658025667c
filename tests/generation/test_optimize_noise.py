"""Noise optimisation: known optima, finite differences through a whole pipeline, and what is refused."""

import math
from types import SimpleNamespace

import diffusers
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from helpers import pipeline_zoo
from helpers.factories import make_pipeline
from helpers.scheduler_matrix import ONE_EACH

import clip_guidance as cg
from clip_guidance.generation.differentiable import DifferentiableCall
from clip_guidance.generation.optimize_noise import optimize_noise

FEW_STEP = ["LatentConsistencyModelPipeline", "SanaSprintPipeline", "StableDiffusionXLPipeline", "FluxPipeline"]
FEW_STEP += ["StableDiffusion3Pipeline", "QwenImagePipeline", "ZImagePipeline"]
CALL = {"prompt": "cat", "num_inference_steps": 1, "guidance_scale": 3.0}


def redness(images):
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


# ---------------------------------------------------------------- a linear generator


class Linear:
    """A generator of one step, z -> A·z, as 3 x 2 x 2 images."""

    def __init__(self, matrix):
        self.matrix = matrix

    def __call__(self, latents, generator, output_type):
        return SimpleNamespace(images=(latents @ self.matrix.T).reshape(-1, 3, 2, 2))


def matrix():
    return torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]


def noise(count=3):
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_without_the_prior_the_optimum_is_the_solution_of_the_linear_system():
    target = torch.rand(12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def reward(images):
        return -(images.flatten(1) - target).square().sum(1)

    options = {"prior": 0.0, "clip": 1e6, "learning_rate": 0.1, "latents": noise()}
    found = optimize_noise(Linear(matrix()), reward, 150, **options)
    torch.testing.assert_close(found.latents, (matrix().T @ target).expand(3, -1), rtol=0, atol=1e-6)
    assert found.rewards == pytest.approx([0.0] * 3, abs=1e-10)
    assert found.history.shape == (151, 3) and found.evaluations == 151


def test_with_the_prior_a_linear_reward_stops_at_the_known_norm():
    """w·z + λ((d − 1)·log ‖z‖ − ‖z‖²/2) is greatest along w, where ‖w‖ + λ((d − 1)/‖z‖ − ‖z‖) = 0."""
    weights = torch.randn(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def reward(images):
        return images.flatten(1) @ weights

    direction, prior = matrix().T @ weights, 2.0
    ratio = direction.norm() / prior
    length = (ratio + (ratio**2 + 4 * 11).sqrt()) / 2
    options = {"prior": prior, "clip": 1e6, "learning_rate": 0.05, "latents": noise()}
    last = optimize_noise(Linear(matrix()), reward, 160, **options)
    best = (direction / direction.norm() * length).expand(3, -1)
    assert last.history[-1].tolist() == pytest.approx((best @ direction).tolist(), rel=1e-6)


def test_the_first_ascents_are_the_paper_s():
    """Nesterov's momentum on gradients clipped to a length, as torch's own optimiser and clipping have it."""
    weights, seen = torch.arange(12.0, dtype=torch.float64), []

    class Watched(Linear):
        def __call__(self, latents, **options):
            seen.append(latents.detach().clone())
            return super().__call__(latents, **options)

    optimize_noise(Watched(matrix()), lambda x: x.flatten(1) @ weights, 3, latents=noise(1))
    z = torch.nn.Parameter(noise(1))
    optimizer = torch.optim.SGD([z], lr=5.0, momentum=0.9, nesterov=True)
    for step in range(3):
        torch.testing.assert_close(seen[step], z.detach())
        norm = torch.linalg.vector_norm(z)
        loss = -(z @ matrix().T @ weights).sum() + 0.01 * (0.5 * norm**2 - 11 * norm.log())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([z], 0.1)
        optimizer.step()
    torch.testing.assert_close(seen[3], z.detach())


def test_no_image_depends_on_its_neighbours_and_a_bad_one_costs_itself_alone():
    def reward(images):
        brightness = images.flatten(1).sum(1)
        return torch.where(brightness > 1e3, math.nan, brightness)

    start = torch.cat([noise(2), torch.full((1, 12), 1e4, dtype=torch.float64) @ matrix()])
    start[2] = matrix().T @ torch.full((12,), 1e4, dtype=torch.float64)
    with pytest.warns(match=r"4 of 12 rewards of reward were not finite"):
        found = optimize_noise(Linear(matrix()), reward, 3, latents=start)
    for row in range(2):
        alone = optimize_noise(Linear(matrix()), reward, 3, latents=start[row : row + 1])
        torch.testing.assert_close(alone.latents, found.latents[row : row + 1], rtol=1e-12, atol=0)
    assert found.rewards[2] == -math.inf and found.latents[2].equal(start[2])


# ---------------------------------------------------------------- a whole pipeline


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


def few_step(scheduler, **config):
    pipe = make_pipeline()
    pipe.scheduler = getattr(diffusers, scheduler)(**config)
    return pipe


@pytest.mark.parametrize("steps", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_gradient_is_that_of_finite_differences_through_the_whole_call(steps):
    pipe = make_pipeline().to(torch.float64)
    call = DifferentiableCall(pipe, {**CALL, "num_inference_steps": steps}, seed=0, max_steps=8)
    with call.prepared():
        z = call.initial_noise().requires_grad_()
        assert z.dtype == torch.float64
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(redness(call(z)).sum(), z)
        way = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=z.dtype)
        with torch.no_grad():
            slope = (redness(call(z + 1e-5 * way)) - redness(call(z - 1e-5 * way))) / 2e-5
    torch.testing.assert_close((gradient * way).sum(), slope.sum(), rtol=1e-6, atol=1e-10)


def test_the_reward_rises_and_everything_is_as_before(pipe):
    threads, before = torch.is_grad_enabled(), [p.requires_grad for p in pipe.unet.parameters()]
    options = {**CALL, "num_images_per_prompt": 2, "output_type": "pt"}
    found = optimize_noise(pipe, redness, 6, seed=3, learning_rate=20.0, **options)
    first = pipe(**options, generator=torch.Generator().manual_seed(3)).images
    torch.testing.assert_close(found.history[0], redness(first))
    assert (torch.tensor(found.rewards) > found.history[0]).all()
    assert found.rewards == found.history.amax(0).tolist()
    again = pipe(**options, latents=found.latents, generator=torch.Generator().manual_seed(3)).images
    assert torch.stack(found.images).equal(again)
    torch.testing.assert_close(redness(again), torch.tensor(found.rewards))
    assert [p.requires_grad for p in pipe.unet.parameters()] == before and torch.is_grad_enabled() == threads
    assert "step" not in vars(pipe.scheduler) and "maybe_free_model_hooks" not in vars(pipe)


@pytest.mark.slow
def test_a_seed_gives_the_same_to_the_bit_where_the_scheduler_draws_noise():
    runs = [
        optimize_noise(few_step("LCMScheduler"), redness, 2, seed=seed, **{**CALL, "num_inference_steps": 2})
        for seed in (5, 5, 6)
    ]
    assert runs[0].latents.equal(runs[1].latents) and runs[0].history.equal(runs[1].history)
    assert not runs[0].latents.equal(runs[2].latents)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("setting", ONE_EACH, ids=lambda setting: setting.name)
def test_a_scheduler_passes_the_gradient_on_or_is_named(setting):
    pipe = make_pipeline()
    pipe.scheduler, call = setting.make(), {**CALL, "num_inference_steps": max(4, setting.steps[0])}
    try:
        pipe(**call, generator=torch.Generator().manual_seed(0))
    except Exception as error:
        pytest.skip(f"Stable Diffusion's pipeline does not run with it: {error!s:.80}")
    found = optimize_noise(pipe, redness, 1, max_steps=16, **call)
    assert not found.history[0].equal(found.history[1])


@pytest.mark.slow
@pytest.mark.parametrize("offload", ["layers", "networks"])
def test_offloaded_weights_are_where_the_backward_finds_them(offload):
    plain, pipe, previous = make_pipeline(), make_pipeline(), None
    for network in (pipe.text_encoder, pipe.unet, pipe.vae):
        if offload == "layers":
            cpu_offload(network, torch.device("cpu"))
        else:
            _, previous = cpu_offload_with_hook(network, torch.device("cpu"), previous)
    found, expected = (optimize_noise(each, redness, 2, **CALL) for each in (pipe, plain))
    assert found.latents.equal(expected.latents) and found.history.equal(expected.history)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", FEW_STEP)
def test_the_noise_of_pipelines_of_a_few_steps_is_found(key):
    """It is what makes the same images as the generator; the reward rises along its gradient."""
    pipe, inputs = pipeline_zoo.built(key)
    call = {name: value for name, value in inputs.items() if name not in ("generator", "output_type")}
    found = optimize_noise(pipe, redness, 3, seed=1, learning_rate=1.0, **call)
    plain = pipe(**call, output_type="pt", generator=torch.Generator().manual_seed(1)).images
    if key not in ("LatentConsistencyModelPipeline", "SanaSprintPipeline"):  # these add noise, from the seed anew
        torch.testing.assert_close(found.history[0], redness(plain), rtol=1e-4, atol=1e-5)
    assert found.rewards[0] > found.history[0]


# ---------------------------------------------------------------- refused


def of_pil(images):
    return [image.width for image in images]


@pytest.mark.parametrize("reward", [of_pil, lambda images: images.detach().mean((1, 2, 3))])
def test_a_reward_without_a_gradient_is_refused_with_the_ways_that_need_none(pipe, reward):
    with pytest.raises(ValueError, match="differentiable in images.*best_of, Particles and AdaptiveCFG") as raised:
        optimize_noise(pipe, reward, 1, **CALL)
    assert len(str(raised.value)) <= 300
    assert "step" not in vars(pipe.scheduler)


def test_a_run_of_many_steps_is_refused_with_the_cure(pipe):
    with pytest.raises(ValueError, match=r"this run has 20, above max_steps=8. Take a few-step model.*best_of"):
        optimize_noise(pipe, redness, 1, **{**CALL, "num_inference_steps": 20})


def test_a_scheduler_without_a_gradient_is_named(pipe):
    own = make_pipeline()
    step = own.scheduler.step

    def detached(model_output, timestep, sample, **options):
        return step(model_output.detach(), timestep, sample.detach(), **options)

    own.scheduler.step = detached
    with pytest.raises(ValueError, match="no gradient passes through the step of DDIMScheduler"):
        optimize_noise(own, redness, 1, **CALL)


WRONG = [
    ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
    ({"learning_rate": 0}, ValueError, "learning_rate must be a finite number from 1e-09"),
    ({"prior": -1.0}, ValueError, "prior must be a finite number from 0"),
    ({"momentum": "1"}, TypeError, "momentum must be a number"),
    ({"generator": torch.Generator()}, TypeError, "optimize_noise sets generator itself"),
    ({"reward": 3}, TypeError, "expected a reward"),
    ({"pipe": lambda generator: None}, ValueError, "takes no latents"),
]


@pytest.mark.slow
def test_latents_of_another_form_are_asked_for():
    pipe, inputs = pipeline_zoo.built("Flux2KleinPipeline")
    call = {name: value for name, value in inputs.items() if name not in ("generator", "output_type")}
    with pytest.raises(ValueError, match="Flux2KleinPipeline takes latents of another form than its samples"):
        optimize_noise(pipe, redness, 1, **call)


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_bad_arguments_are_named(pipe, options, error, message):
    with pytest.raises(error, match=message):
        cg.optimize_noise(**{"pipe": pipe, "reward": redness, **CALL, **options})
