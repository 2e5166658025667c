"""The bound on the shift of mode "exact": it cuts the error of a denoiser, and leaves an ideal denoiser alone."""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn

from clip_guidance.guidance import Guidance
from clip_guidance.guidance.adapters.noise_level import NoiseLevel
from clip_guidance.guidance.adapters.prediction import PREDICTION_TYPES, Prediction
from clip_guidance.guidance.methods import UniversalGuidance
from clip_guidance.guidance.modes import RewardGradient, StepState, exact, find_mode

SIDE, STD, SLOPE = 16, 0.2, 5.0  # of images in [-1, 1]; the tilted mean is SLOPE·STD² = 0.2
COUNT = SIDE * SIDE


class Denoiser(nn.Module):
    """ε of N(0, covariance) data in closed form, and an error of a share of its size."""

    def __init__(self, scheduler, covariance, error=0.0):
        super().__init__()
        self.scheduler, self.error = scheduler, error
        self.values, self.vectors = torch.linalg.eigh(covariance.double())
        generator = torch.Generator().manual_seed(0)
        mixing = torch.randn(COUNT, COUNT, generator=generator, dtype=torch.float64)
        self.mixing = torch.linalg.qr(mixing)[0]

    def forward(self, x, t):
        product = self.scheduler.alphas_cumprod[t].double()
        x = x.double().flatten(1)
        variance = product * self.values + 1 - product  # of x, in the covariance's own directions
        epsilon = (1 - product).sqrt() * (x @ self.vectors / variance) @ self.vectors.T
        return (epsilon + self.error * x @ self.mixing).view(len(x), 1, SIDE, SIDE).float()


def isotropic():
    return STD**2 * torch.eye(COUNT)


def brightness(x):
    return SLOPE * x.flatten(1).sum(1)


def sample(pipe, steps=50):
    pipe.scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.unet(x, t), t, x, generator=generator).prev_sample
    return x


def make_pipe(cls=DDIMScheduler, covariance=None, **options):
    """A third party's model: linear betas, ᾱ = 4e-5 at the first step, nothing clipped."""
    scheduler = cls(clip_sample=False, timestep_spacing="trailing")
    return SimpleNamespace(
        scheduler=scheduler, unet=Denoiser(scheduler, isotropic() if covariance is None else covariance, **options)
    )


def guided(pipe, mode="exact", reward=brightness, **options):
    with Guidance(reward, mode=mode, **{"space": "latent", "data_variance": STD**2, **options}).attach(pipe):
        return sample(pipe)


@pytest.mark.parametrize("cls", [DDIMScheduler, DDPMScheduler])
def test_an_error_of_five_percent_leaves_images_in_range(cls):
    """Divided by α² of the first step it was some thousand times the variance of the images: white noise."""
    pipe = make_pipe(cls, error=0.05)
    unguided, found = sample(pipe), guided(pipe)
    assert found.abs().max() < 1.25 and (found.abs() > 1).float().mean() < 0.001
    assert (found - unguided).mean().item() == pytest.approx(SLOPE * STD**2, rel=0.1)
    assert found.std() < 1.3 * unguided.std()


def test_universal_guidance_stays_its_papers():
    pipe = make_pipe(error=0.05)
    assert guided(pipe, UniversalGuidance(1.0)).std() > 2


def test_an_ideal_denoiser_is_left_alone_to_the_bit(monkeypatch):
    pipe = make_pipe()
    found = guided(pipe)
    monkeypatch.setattr(exact, "_DEVIATIONS", math.inf)
    assert guided(pipe).equal(found)


def correlated(share=0.3):
    """Images whose brightness varies as a whole: their common direction has this share of all variance."""
    one = torch.full((COUNT, COUNT), 1 / COUNT)
    return STD**2 * ((1 - share) * torch.eye(COUNT) + share * COUNT * one)


def test_a_covariance_that_is_not_isotropic_stays_exact():
    """Along the brightness the variance is 77 times s²: mode "x0" sees s², "exact" finds it in the denoiser."""
    pipe, slope = make_pipe(covariance=correlated()), 0.05
    variance = STD**2 * (0.7 + 0.3 * COUNT)

    def moved(mode):
        return (guided(pipe, mode, lambda x: slope * x.flatten(1).sum(1)) - sample(pipe)).mean().item()

    assert moved("exact") == pytest.approx(slope * variance, rel=0.02)
    assert moved("x0") < 0.1 * slope * variance


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_data_variance_that_is_off_by_two_does_not_matter(factor):
    pipe = make_pipe()
    assert guided(pipe, data_variance=factor * STD**2).equal(guided(pipe))


def state_at(scale, error, variance=0.25):
    """A step at ᾱ = 6e-5 of a denoiser whose vjp is off by ``error`` times the cotangent."""
    level = NoiseLevel(math.sqrt(6e-5), math.sqrt(1 - 6e-5))
    output, x = (torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    ideal = level.alpha * variance / (level.alpha**2 * variance + level.sigma**2)
    sizes = torch.tensor([0.01, 1.0, 100.0]).view(3, 1, 1, 1)

    def gradient(x0):
        return RewardGradient(sizes * torch.ones_like(x0), sizes.flatten())

    def vjp(cotangent):
        return (ideal + error) * cotangent

    prediction = Prediction(output, x, level, PREDICTION_TYPES["epsilon"])
    return StepState(prediction, 999, None, torch.tensor(scale), variance, gradient, vjp), sizes


@pytest.mark.parametrize("scale", [[1.0, 1.0, 1.0], [0.0, -30.0, 2.0]])
def test_each_sample_is_bounded_by_its_own_gradient_and_scale(scale):
    """rms(scale·Δ) ≤ max(scale·w·rms(∇r), 3√w), and no other sample feels it."""
    state, sizes = state_at(scale, error=5.0)
    found = find_mode("exact").shift(state)
    alpha, sigma, w = state.level.alpha, state.level.sigma, 0.25 / (6e-5 * 0.25 + 1 - 6e-5) * (1 - 6e-5)
    unbounded = sigma**2 / alpha * state.vjp(sizes * torch.ones_like(found))
    strength = torch.tensor(scale).abs().view(3, 1, 1, 1)
    limit = torch.maximum(strength * w * sizes, torch.tensor(3 * math.sqrt(w)))
    expected = torch.where(strength * unbounded > limit, limit / strength, unbounded)
    torch.testing.assert_close(found, expected)
    assert found.isfinite().all()
    ideal, _ = state_at(scale, error=0.0)
    torch.testing.assert_close(find_mode("exact").shift(ideal), w * sizes.expand_as(found))
