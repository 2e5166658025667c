"""Each method, through the plug-in and a stock scheduler, against its paper's algorithm written out in float64."""

import math

import pytest
import torch
from helpers.gaussian import STD, TILT, tilt
from helpers.reference_samplers import (
    SHAPE,
    STEPS,
    assert_close,
    gradient,
    guided,
    make_pipe,
    quadratic,
    reference_samples,
    run,
)

from clip_guidance.guidance.methods import DPS, LGDMC, MPGD, TFG, FreeDoM, UniversalGuidance

settings = pytest.mark.parametrize(
    ("eta", "prediction", "ddpm"),
    [(0.0, "epsilon", False), (0.5, "v_prediction", False), (1.0, "epsilon", False), (1.0, "v_prediction", True)],
    ids=["ddim", "between", "ddim-eta1", "ddpm"],
)


def rms(x):
    return x.square().mean(dim=(1, 2), keepdim=True).sqrt()


def ddpm_weights(s):
    """c₁ of x̂₀ and c₂ of x_t in the mean of DDPM's posterior, equation 7 of arXiv:2006.11239."""
    alpha, rest = s.bar / s.bar_next, 1 - s.bar
    return math.sqrt(s.bar_next) * (1 - alpha) / rest, math.sqrt(alpha) * (1 - s.bar_next) / rest


def dps(s):
    return s.ddim() + 0.3 * s.jacobian * gradient(s.x0)


def freedom(s):
    g = s.jacobian * gradient(s.x0)
    c1 = ddpm_weights(s)[0]
    return s.ddim() + 0.02 * rms(s.eps) * math.sqrt((1 - s.bar) / s.bar) * c1 * g / rms(g)


def mpgd(s):
    return s.ddim(x0=s.x0 + 0.1 * gradient(s.x0))


def mpgd_relative(s):
    g = gradient(s.x0)
    c_t = rms(s.eps) * math.sqrt((1 - s.bar) / s.bar) * ddpm_weights(s)[0] / rms(g) / math.sqrt(s.bar_next)
    x0 = s.x0 + c_t * g  # in DDPM's c₁x̂₀ + c₂x_t: x_t is kept, and with it x̂₀ and ε̂ together
    return s.ddim(x0, (s.x - math.sqrt(s.bar) * x0) / math.sqrt(1 - s.bar))


def universal(s):
    eps = s.eps - 0.4 * math.sqrt(1 - s.bar) * s.jacobian * gradient(s.x0)
    delta = torch.zeros(SHAPE)
    for _ in range(3):
        delta = delta + 0.1 * gradient(s.x0 + delta)
    eps = eps - math.sqrt(s.bar / (1 - s.bar)) * delta
    return s.ddim(x0=(s.x - math.sqrt(1 - s.bar) * eps) / math.sqrt(s.bar), eps=eps)


def tfg(s):
    z = s.x0
    for _ in range(2):
        z = z + 0.05 * gradient(z)
    variance = 0.2 * s.jacobian * gradient(s.x0)
    return s.ddim() + variance / math.sqrt(s.bar / s.bar_next) + math.sqrt(s.bar_next) * (z - s.x0)


CONSTANT = {"rho_schedule": "constant", "mu_schedule": "constant"}
PAPERS = {
    "dps": (DPS(0.3), dps),
    "lgd": (LGDMC(0.3, samples=1, radius=0.0), dps),
    "freedom": (FreeDoM(rho_without=0.02), freedom),
    "mpgd": (MPGD(0.1), mpgd),
    "mpgd-relative": (MPGD(rho_without=1.0), mpgd_relative),
    "universal": (UniversalGuidance(0.4, 3, 0.1), universal),
    "tfg": (TFG(0.2, 0.05, sigma=0.0, iterations=2, **CONSTANT), tfg),
}


@settings
@pytest.mark.parametrize("name", PAPERS)
def test_method_is_its_papers_algorithm(name, eta, prediction, ddpm):
    method, update = PAPERS[name]
    expected = reference_samples(update, eta)
    unguided = reference_samples(lambda s: s.ddim(), eta)
    assert (expected - unguided).abs().max() > 0.01, "the comparison would see nothing"
    assert_close(guided(make_pipe(eta, prediction, ddpm), method), expected)


@settings
def test_unguided_run_is_ddim_written_out(eta, prediction, ddpm):
    assert_close(run(make_pipe(eta, prediction, ddpm)), reference_samples(lambda s: s.ddim(), eta))


def test_the_released_mpgd_is_ddpm_with_a_shifted_clean_sample():
    """Where that is how its authors write it, x_{t−1} = c₁x̂₀' + c₂x_t + τz."""

    def released(s):
        (c1, c2), g = ddpm_weights(s), gradient(s.x0)
        c_t = rms(s.eps) * math.sqrt((1 - s.bar) / s.bar) * c1 / rms(g) / math.sqrt(s.bar_next)
        return c1 * (s.x0 + c_t * g) + c2 * s.x + s.tau * s.z

    assert_close(guided(make_pipe(), MPGD(rho_without=1.0)), reference_samples(released))


def test_ddim_at_eta_1_is_ddpm():
    """The two forms that the papers write, x̂₀ with ε̂ and x̂₀ with x_t, are one for an unchanged ε̂."""

    def ddpm(s):
        c1, c2 = ddpm_weights(s)
        return c1 * s.x0 + c2 * s.x + s.tau * s.z

    torch.testing.assert_close(reference_samples(ddpm), reference_samples(lambda s: s.ddim()))


def test_tfg_with_schedules_and_noise_is_its_paper():
    """One noisy copy. That of the package comes from the seed and the timestep."""
    bars = []

    def record(s):
        bars.append(s.bar / s.bar_next)
        return s.ddim()

    reference_samples(record)
    rho = {alpha: 0.2 * STEPS * alpha / sum(bars) for alpha in bars}
    mu = {alpha: 0.05 * STEPS * (1 - alpha) / sum(1 - each for each in bars) for alpha in bars}
    timesteps = iter(range(1000 - 1000 // STEPS, -1, -(1000 // STEPS)))

    def update(s):
        generator = torch.Generator().manual_seed(1_000_003 * 5 + next(timesteps))

        noise = torch.randn((1, *SHAPE[1:]), generator=generator)  # stays for the whole step

        def smoothed(x):
            return gradient(x + 0.3 * math.sqrt(1 - s.bar) * noise)

        alpha = s.bar / s.bar_next
        first = smoothed(s.x0)
        z = s.x0 + mu[alpha] * first
        z = z + mu[alpha] * smoothed(z)
        return s.ddim() + rho[alpha] * s.jacobian * first / math.sqrt(alpha) + math.sqrt(s.bar_next) * (z - s.x0)

    method = TFG(0.2, 0.05, sigma=0.3, iterations=2, mu_schedule="decrease", seed=5)
    assert_close(guided(make_pipe(), method), reference_samples(update))


def test_lgd_of_several_copies_is_the_gradient_of_the_log_of_the_mean():
    timesteps = iter(range(1000 - 1000 // STEPS, -1, -(1000 // STEPS)))

    def update(s):
        generator = torch.Generator().manual_seed(next(timesteps))
        x0 = s.x0.clone().requires_grad_()
        rewards = []
        for _ in range(4):
            noise = torch.randn((1, *SHAPE[1:]), generator=generator)
            rewards.append(quadratic(x0 + math.sqrt(1 - s.bar) * noise))
        (g,) = torch.autograd.grad(torch.stack(rewards).exp().mean(0).log().sum(), x0)
        return s.ddim() + 0.3 * s.jacobian * g

    assert_close(guided(make_pipe(), LGDMC(0.3, samples=4)), reference_samples(update))


@pytest.mark.parametrize("samples", [1, 3])
def test_lgd_of_a_linear_reward_is_dps(samples):
    """log E exp(a·(x + rε)) = a·x + a²r²/2: the noise drops out of the gradient."""
    pipe = make_pipe()
    found = guided(pipe, LGDMC(0.3, samples=samples), tilt)
    assert_close(found, guided(pipe, DPS(0.3), tilt))
    assert_close(found, reference_samples(lambda s: s.ddim() + 0.3 * s.jacobian * TILT))


def test_universal_forward_at_weight_1_turns_the_denoiser_into_that_of_the_tilted_data():
    """ε of N(μ + tilt·s², s²) data, of which the paper knows nothing: the weight is the one of Bayes' rule."""

    def tilted(s):
        x0 = s.x0 + (1 - math.sqrt(s.bar) * s.jacobian) * TILT * STD**2
        return s.ddim(x0, (s.x - math.sqrt(s.bar) * x0) / math.sqrt(1 - s.bar))

    assert_close(guided(make_pipe(), UniversalGuidance(), tilt), reference_samples(tilted))
