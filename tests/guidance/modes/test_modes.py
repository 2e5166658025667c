import math
from types import SimpleNamespace

import pytest
import torch
from helpers.factories import Recorder, TinyCLIP, generate, make_scheduler
from torch import nn

from clip_guidance.guidance import CLIPGuidance, Guidance
from clip_guidance.guidance.adapters.noise_level import NoiseLevel
from clip_guidance.guidance.modes.x0 import posterior_variance

SCHEDULERS = ["ddim", "euler", "dpm"]
GUIDANCE_SCALE, SCALE = 3.0, 2.0


# ---------------------------------------------------------------- the posterior variance of mode "x0"


@pytest.mark.parametrize("variance", [0.25, 1.0, 4.0])
def test_posterior_variance_has_the_right_limits(variance):
    assert posterior_variance(NoiseLevel(1.0, 0.0), variance) == 0
    assert posterior_variance(NoiseLevel(0.0, 1.0), variance) == variance
    assert posterior_variance(NoiseLevel(1.0, 1e4), variance) == pytest.approx(variance, rel=1e-6)


@pytest.mark.parametrize("variance", [0.25, 1.0, 4.0])
def test_posterior_variance_does_not_see_the_scale_of_x(variance):
    vp, ve = NoiseLevel(0.6, 0.8), NoiseLevel(1.0, 0.8 / 0.6)
    assert posterior_variance(vp, variance) == pytest.approx(posterior_variance(ve, variance))


# ---------------------------------------------------------------- both modes against finite differences


class Chain:
    """The reward of what a pipeline is about to predict, written out in plain float64 code."""

    def __init__(self, pipe, clip, prompt, timestep, index, cfg):
        self.pipe, self.clip, self.t, self.cfg = pipe, clip, timestep, cfg
        self.embeds = pipe.encode_prompt("cat", pipe.device, 1, True)[::-1]  # unconditional first
        self.text_embeds = clip.encode_text([prompt])
        scheduler = pipe.scheduler
        if hasattr(scheduler, "sigmas"):
            ratio = scheduler.sigmas[index].double().item()
        else:
            alpha_prod = scheduler.alphas_cumprod[timestep].double().item()
            ratio = math.sqrt((1 - alpha_prod) / alpha_prod)
        vp_alpha = 1 / math.sqrt(1 + ratio**2)
        is_euler = type(scheduler).__name__.startswith("Euler")
        # In float32, as Euler computes it: the difference from float64 would show at σ = 14.
        self.input_norm = ((scheduler.sigmas[index] ** 2 + 1) ** 0.5).item() if is_euler else 1.0
        self.alpha = 1.0 if is_euler else vp_alpha
        self.sigma = ratio * self.alpha

    def x0(self, x):
        outputs = [self.pipe.unet(x / self.input_norm, self.t, e).sample for e in self.embeds]
        model_output = outputs[0] + GUIDANCE_SCALE * (outputs[1] - outputs[0]) if self.cfg else outputs[1]
        return self.x0_from(model_output, x)

    def x0_from(self, model_output, x):
        if self.pipe.scheduler.config.prediction_type == "epsilon":
            return (x - self.sigma * model_output) / self.alpha
        norm = self.alpha**2 + self.sigma**2
        return self.alpha * x / norm - self.sigma * model_output / math.sqrt(norm)

    def reward_of_sample(self, x):
        return self.reward(self.x0(x))

    def reward(self, x0):
        images = self.pipe.vae.decode(x0 / self.pipe.vae.config.scaling_factor).sample / 2 + 0.5
        assert 0 < images.min() < images.max() < 1, "a clipped image has no finite difference to compare with"
        embeds = self.clip.image_embeds(self.clip.image_processor.differentiable(images))
        return (self.clip.logit_scale.exp() * (embeds * self.text_embeds).sum(-1)).sum()


def central_difference(function, x, direction, h=1e-5):
    return ((function(x + h * direction) - function(x - h * direction)) / (2 * h)).item()


@pytest.mark.parametrize("cfg", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("mode", ["x0", "exact"])
def test_shift_is_the_finite_difference_of_the_whole_chain(tiny_pipeline, clip, mode, scheduler, prediction, cfg):
    pipe = tiny_pipeline(scheduler, torch.float64, prediction_type=prediction)
    clip = clip.double()
    recorder = Recorder(pipe.scheduler)
    # Random weights denoise nothing: their ∂x̂₀/∂x is no covariance of data of variance 1, which "exact" would cut.
    variance = 1e4 if mode == "exact" else None
    with CLIPGuidance(clip, "dog", scale=SCALE, mode=mode, data_variance=variance).attach(pipe):
        generate(pipe, steps=3, guidance_scale=GUIDANCE_SCALE if cfg else 1.0)
    direction = torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    direction = direction.to(pipe.device)
    with torch.no_grad():
        for index, (guided_output, t, x) in enumerate(recorder.calls):
            chain = Chain(pipe, clip, "dog", t, index, cfg)
            x0 = chain.x0(x)
            shift = chain.x0_from(guided_output, x) - x0
            if mode == "x0":
                weight = chain.sigma**2 / (chain.alpha**2 + chain.sigma**2)
                slope = central_difference(chain.reward, x0, direction)
            else:
                weight = chain.sigma**2 / chain.alpha
                slope = central_difference(chain.reward_of_sample, x, direction)
            assert slope != 0
            assert (shift * direction).sum().item() == pytest.approx(SCALE * weight * slope, rel=1e-5, abs=1e-8)


# ---------------------------------------------------------------- mode "exact" on hand-made denoisers


class Linear(nn.Module):
    """m = weight·x over the first channels, so that the gradient is known."""

    def __init__(self, weight=0.5):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.calls = 0

    def forward(self, sample, timestep=None):
        self.calls += 1
        if isinstance(sample, list):
            sample = torch.stack([each[-1] if isinstance(each, list) else each for each in sample])
        return self.weight * sample[:, :2]


def quadratic(x):
    return -((x - 1) ** 2).flatten(1).sum(1)


def run(denoise, mode="exact", scheduler="euler", unet=None, reward=quadratic, steps=5, **config):
    """A bare sampling loop around ``denoise(unet, scaled sample, t)``."""
    pipe = SimpleNamespace(scheduler=make_scheduler(scheduler, **config), unet=unet or Linear())
    pipe.scheduler.set_timesteps(steps)
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)) * pipe.scheduler.init_noise_sigma
    with Guidance(reward, mode=mode, space="latent", scale=0.1).attach(pipe):
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(denoise(pipe.unet, pipe.scheduler.scale_model_input(x, t), t), t, x).prev_sample
    return x


def plain(unet, x, t):
    return unet(x, t)


LOOPS = {
    "keyword": lambda unet, x, t: unet(sample=x, timestep=t),
    "batched classifier-free guidance": lambda unet, x, t: sum(unet(torch.cat([x] * 2), t).chunk(2)) / 2,
    "sequential classifier-free guidance": lambda unet, x, t: (unet(x, t) + unet(x, t)) / 2,
    "concatenated mask channels": lambda unet, x, t: unet(torch.cat([x, torch.ones_like(x)], dim=1), t),
    "scaled by the pipeline": lambda unet, x, t: 4 * unet(x / 4, t),
    "with a frame axis": lambda unet, x, t: unet(x.unsqueeze(2), t).squeeze(2),
    "with a frame axis and more channels": lambda unet, x, t: unet(torch.cat([x, x + 1], 1).unsqueeze(2), t).squeeze(2),
    "before other tokens": lambda unet, x, t: unet(torch.cat([x, torch.ones_like(x)], dim=2), t)[..., :4],
    "after other tokens": lambda unet, x, t: unet(torch.cat([torch.ones_like(x), x], dim=2), t)[..., 4:],
    "as a list of samples": lambda unet, x, t: sum(unet(list(torch.cat([x] * 2)), t).chunk(2)) / 2,
    "last in a list of images": lambda unet, x, t: unet([[torch.ones(2, 1), each] for each in x], t),
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_exact_sums_over_copies_and_ignores_other_channels(scheduler, loop):
    torch.testing.assert_close(run(LOOPS[loop], scheduler=scheduler), run(plain, scheduler=scheduler))


@pytest.mark.parametrize("grad_enabled", [True, False])
def test_exact_works_in_any_grad_mode_and_leaves_it(grad_enabled):
    grad_modes = []

    def loop(unet, x, t):
        grad_modes.append(torch.is_grad_enabled())
        return unet(x, t)

    with torch.set_grad_enabled(grad_enabled):
        x = run(loop)
        assert torch.is_grad_enabled() == grad_enabled
    assert grad_modes == [grad_enabled] * 5
    assert not x.requires_grad
    torch.testing.assert_close(x, run(plain))


def test_exact_runs_the_denoiser_once_a_step_and_leaves_no_gradients():
    unet = Linear()
    run(plain, unet=unet, steps=5)
    assert unet.calls == 5
    assert unet.weight.grad is None and unet.weight.requires_grad
    assert not unet._forward_pre_hooks


def test_weights_need_no_gradients_while_attached():
    states = []
    unet, head = Linear(), nn.Linear(8, 1)

    def loop(unet, x, t):
        states.append((unet.weight.requires_grad, head.weight.requires_grad))
        return unet(x, t)

    run(loop, unet=unet, reward=nn.Sequential(nn.Flatten(), head, nn.Flatten(0)), steps=2)
    assert states == [(False, False)] * 2
    assert unet.weight.requires_grad and head.weight.requires_grad


def test_weights_that_were_frozen_stay_frozen():
    unet = Linear().requires_grad_(False)
    run(plain, unet=unet)
    assert not unet.weight.requires_grad


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_without_a_signal_exact_falls_back_to_x0(scheduler):
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    first_steps = []
    for mode in ("x0", "exact"):
        pipe = SimpleNamespace(scheduler=make_scheduler(scheduler, **config), unet=Linear())
        pipe.scheduler.set_timesteps(4)
        x, t = torch.ones(1, 2, 4) * pipe.scheduler.init_noise_sigma, pipe.scheduler.timesteps[0]
        with Guidance(quadratic, mode=mode, space="latent").attach(pipe), torch.no_grad():
            model_output = pipe.unet(pipe.scheduler.scale_model_input(x, t), t)
            first_steps.append(pipe.scheduler.step(model_output, t, x).prev_sample)
    assert first_steps[0].equal(first_steps[1])
    assert first_steps[0].isfinite().all()


def detached(unet, x, t):
    return unet(x, t).detach()


def without_hooks(unet, x, t):
    return unet.forward(x, t)


@pytest.mark.parametrize(("loop", "calls"), [(detached, 1), (without_hooks, 0)])
def test_exact_says_when_no_gradient_reaches_the_step(loop, calls):
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match=rf"scheduler.step carries none.* called {calls} times.*mode='x0'"),
    ):
        run(loop)
    assert torch.is_grad_enabled()


def test_exact_says_when_the_denoiser_reads_something_else():
    with pytest.raises(ValueError, match=r"copies of the sample \(3, 2, 4\).*it read \(3, 2, 4\)"):
        run(lambda unet, x, t: unet(x.flip(-1), t))


def test_exact_says_when_it_cannot_find_the_sample():
    class Odd(nn.Module):
        def forward(self, pixels):
            return pixels

    names = "sample or hidden_states or x or latents"
    with pytest.raises(ValueError, match=rf"first argument of Odd or in {names}; .*with pixels"):
        run(lambda unet, x, t: unet(pixels=x), unet=Odd())


def test_x0_needs_no_gradient_of_the_denoiser():
    torch.testing.assert_close(run(detached, mode="x0"), run(plain, mode="x0").detach())


def test_tiny_clip_gives_unit_vectors():
    clip = TinyCLIP()
    embeds = clip.image_embeds(clip.image_processor.differentiable(torch.rand(2, 3, 9, 9)))
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(2))
