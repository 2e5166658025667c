"""The mixture oracle: with the tilt exp(r) the weights of two modes come out right, as no gradient makes them.

The ideal denoiser of the mixture is known, and so are the weights of its modes under the tilt (helpers.mixture). The
groups of particles are weighted by their evidence, which makes the estimate consistent for any k.
"""

import math
from types import SimpleNamespace

import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from helpers import mixture
from helpers.mixture import BETWEEN, STD, TILT, TILTED_UPPER, UPPER, MixtureDenoiser, sample, tilt

import clip_guidance as cg

SPACED = {"timestep_spacing": "trailing"}
SCHEDULERS = {  # name -> makes the scheduler, options of its step, steps that make its own error small
    "sde++": (lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **SPACED), {}, 40),
    "ddim": (lambda: DDIMScheduler(clip_sample=False, set_alpha_to_one=True, **SPACED), {"eta": 1.0}, 500),
    "ancestral": (lambda: EulerAncestralDiscreteScheduler(**SPACED), {}, 500),
}
slow = pytest.mark.slow
slow_schedulers = [pytest.param(name, marks=slow) for name in ("ddim", "ancestral")]
PLAIN = {"space": "latent"}


def make_pipe(name="sde++"):
    scheduler = SCHEDULERS[name][0]()
    return SimpleNamespace(scheduler=scheduler, unet=MixtureDenoiser(scheduler, "epsilon"))


def drawn(name, count, pipe=None, **options):
    _, own, steps = SCHEDULERS[name]
    return sample(pipe or make_pipe(name), steps, count, **own, **options)


def upper_share(result):
    """The weight of the upper mode, and its standard error over the groups (delta method for a ratio)."""
    evidence = (result.log_evidence - result.log_evidence.max()).exp()
    share = (result.weights * (result.rewards > TILT * BETWEEN)).sum(1)
    mean = (evidence * share).sum() / evidence.sum()
    return mean.item(), ((evidence * (share - mean)).square().sum().sqrt() / evidence.sum()).item()


@pytest.mark.parametrize("name", ["sde++", *slow_schedulers])
@pytest.mark.parametrize("potential", ["difference", *(pytest.param(each, marks=slow) for each in ("max", "sum"))])
def test_weights_of_the_modes_are_right_within_three_standard_errors(name, potential):
    pipe = make_pipe(name)
    with cg.Particles(tilt, 4, potential=potential, batch_size=4, **PLAIN).attach(pipe) as particles:
        drawn(name, 8000, pipe)
    assert len(particles.result.resamplings) == 4
    assert any((each.effective_sizes < 3.5).any() for each in particles.result.resamplings)  # they do resample
    found, error = upper_share(particles.result)
    print(f"\n{name}, {potential}: {found:.4f} ± {error:.4f}, true {TILTED_UPPER:.4f}", end="")
    assert error < 0.012
    assert abs(found - TILTED_UPPER) < 3 * error


@pytest.mark.parametrize("name", ["sde++", *slow_schedulers])
@pytest.mark.parametrize(
    ("mode", "variance"),
    [pytest.param("x0", STD**2, marks=slow), pytest.param("x0", 0.7, marks=slow), ("exact", None)],
)
def test_every_gradient_alone_gets_them_wrong(name, mode, variance):
    """Also x0 with the variance of all the data, within the modes and between, and exact with the true posterior's."""
    pipe, count = make_pipe(name), 1000 if name == "sde++" else 4000
    with cg.Guidance(tilt, mode=mode, data_variance=variance, **PLAIN).attach(pipe):
        found = (drawn(name, count, pipe) > BETWEEN).double().mean().item()
    error = (found * (1 - found) / count) ** 0.5
    print(f"\n{name}, {mode}: {found:.4f} ± {error:.4f}, true {TILTED_UPPER:.4f}", end="")
    assert abs(found - TILTED_UPPER) > 4 * error


@slow
def test_the_sampler_alone_has_the_weights_of_the_data():
    found, error = (drawn("sde++", 8000) > 0).double().mean().item(), (UPPER * (1 - UPPER) / 8000) ** 0.5
    assert abs(found - UPPER) < 3 * error


@slow
def test_what_is_left_to_pay_at_the_end_is_what_makes_the_weights_right():
    """Particles that were resampled by the sum of their rewards are off where they are not weighted at the end."""
    pipe = make_pipe()
    with cg.Particles(tilt, 8, potential="sum", batch_size=8, **PLAIN).attach(pipe) as particles:
        drawn("sde++", 16000, pipe)
    evidence = particles.result.log_evidence.exp()
    unweighted = (particles.result.rewards > TILT * BETWEEN).double().mean(1)
    assert abs((evidence * unweighted).sum() / evidence.sum() - TILTED_UPPER) > 0.03


@slow
def test_evidence_is_the_mean_of_the_exponential():
    """E[exp(r)] of the data is Σ wᵢ·exp(t·mᵢ + t²·s²/2), whatever the potential."""
    modes = zip(mixture.WEIGHTS, mixture.MEANS, strict=True)
    true = sum(w * math.exp(TILT * m + TILT**2 * STD**2 / 2) for w, m in modes)
    for potential in ("difference", "max", "sum"):
        pipe = make_pipe()
        with cg.Particles(tilt, 4, potential=potential, batch_size=4, **PLAIN).attach(pipe) as particles:
            drawn("sde++", 16000, pipe)
        evidence = particles.result.log_evidence.exp()
        assert abs(evidence.mean() - true) < 3 * evidence.std() / len(evidence) ** 0.5


@slow
def test_a_warm_start_chooses_the_mode():
    """The best of 8 after a part of the run is in the upper mode more often than a gradient makes it."""
    pipe = make_pipe()
    with cg.Particles(tilt, 8, resample_at=0.8, potential="best", **PLAIN).attach(pipe) as particles:
        drawn("sde++", 4000, pipe)
    assert (particles.result.rewards[:, 0] > TILT * BETWEEN).double().mean() > 0.75
    assert particles.result.weights is None and particles.result.log_evidence is None
