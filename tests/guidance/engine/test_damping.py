"""Damping on the Gaussian oracle: with a quadratic reward the tilted distribution is known in closed form.

N(μ, s²) tilted by exp(−κ(x₀ − a)²) is the product of two Gaussians: N(m, v) with 1/v = 1/s² + 2κ and
m = v·(μ/s² + 2κa). Guidance with the damping κ must turn the ideal denoiser of the data into that of the product.
"""

import math

import pytest
import torch
from helpers.gaussian import CONSISTENCY, MEAN, STD, guided, make_pipe, sample
from helpers.scheduler_matrix import FEW, ONE_EACH, matrix

from clip_guidance.guidance import Guidance
from clip_guidance.guidance.engine.damping import damped

CURVATURE, TARGET, SCALE, STEPS = 1.2, 1.5, 0.7, 8
VARIANCE = 1 / (1 / STD**2 + 2 * SCALE * CURVATURE)
PRODUCT_MEAN = VARIANCE * (MEAN / STD**2 + 2 * SCALE * CURVATURE * TARGET)


def near_target(x):
    return -CURVATURE * (x.flatten(1) - TARGET).square().sum(1)


def of_product(setting):
    """Samples with the ideal denoiser of the product."""
    pipe = make_pipe(setting)
    pipe.unet.mean, pipe.unet.std = PRODUCT_MEAN, math.sqrt(VARIANCE)
    return sample(pipe, STEPS)


@matrix([setting for setting in ONE_EACH if setting.scheduler not in CONSISTENCY], default=FEW)
@pytest.mark.parametrize("mode", ["x0", pytest.param("exact", marks=pytest.mark.slow)])
def test_a_quadratic_reward_gives_the_samples_of_the_product(setting, mode):
    pipe = make_pipe(setting)
    expected, found = of_product(setting), guided_near_target(pipe, mode, damping=CURVATURE)
    torch.testing.assert_close(found, expected, atol=1e-3 * max(1, expected.abs().max().item()), rtol=0)


@pytest.mark.slow
@matrix([setting for setting in ONE_EACH if setting.scheduler in CONSISTENCY])
@pytest.mark.parametrize("steps", [2, 8])
@pytest.mark.parametrize("mode", ["x0", "exact"])
def test_consistency_functions_come_to_the_mean_of_the_product(setting, mode, steps):
    """Each step ends at single samples, not at means, so that their mean alone is that of the product."""
    if setting.scheduler == "SCMScheduler" and mode == "exact":
        pytest.skip("is refused")
    pipe, noise = make_pipe(setting), torch.zeros(40_000, 1, 1, 1, dtype=torch.float64)
    with Guidance(near_target, SCALE, mode, space="latent", data_variance=STD**2, damping=CURVATURE).attach(pipe):
        found = sample(pipe, steps, start=PRODUCT_MEAN, noise=noise).mean().item()
    error = 3 * STD / math.sqrt(len(noise))
    assert found == pytest.approx(PRODUCT_MEAN, abs=error) and error < 0.05 * (PRODUCT_MEAN - MEAN)


def guided_near_target(pipe, mode, **options):
    with Guidance(near_target, SCALE, mode, space="latent", data_variance=STD**2, **options).attach(pipe):
        return sample(pipe, STEPS)


@matrix(FEW)
def test_without_damping_the_same_reward_overshoots(setting):
    undamped, expected = guided_near_target(make_pipe(setting), "x0"), of_product(setting)
    plain = sample(make_pipe(setting), STEPS)
    assert ((undamped - plain).mean() / (expected - plain).mean()).item() > 1.1


@matrix(FEW)
def test_a_linear_reward_needs_none(setting):
    assert guided(make_pipe(setting), STEPS, damping=0.0).equal(guided(make_pipe(setting), STEPS))


def test_each_image_is_damped_by_the_size_of_its_own_scale():
    shift = torch.tensor([[3.0, -1.0], [3.0, -1.0], [3.0, -1.0]], dtype=torch.float64)
    found = damped(shift, torch.tensor([4.0, -4.0, 0.0]), curvature=0.5, variance=0.25)
    torch.testing.assert_close(found, shift / torch.tensor([[2.0], [2.0], [1.0]]))  # 1 + 2·0.5·0.25·4


@pytest.mark.parametrize("damping", [-0.1, math.inf, math.nan])
def test_damping_is_finite_and_at_least_zero(damping):
    with pytest.raises(ValueError, match="damping must be at least 0 and finite, or None, got"):
        Guidance(near_target, damping=damping)
