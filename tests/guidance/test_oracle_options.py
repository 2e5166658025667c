"""The options of guidance against the Gaussian oracle, and what guidance must not do to a scheduler."""

import pytest
from helpers.gaussian import STD, centered, guided, make_pipe, sample, tilt
from helpers.scheduler_matrix import FEW, ONE_EACH, SETTINGS, matrix

from clip_guidance.guidance import Guidance

modes = pytest.mark.parametrize("mode", ["x0", "exact"])
PLAIN = {setting.name: setting for setting in SETTINGS if not setting.note}
three = matrix([PLAIN["DDIM epsilon"], PLAIN["EulerDiscrete epsilon"], PLAIN["DPMSolverMultistep epsilon"]])


@matrix(ONE_EACH, default=FEW)
def test_strength_does_not_depend_on_every(setting):
    pipe = make_pipe(setting)
    means = [guided(pipe, 12, every=every).mean().item() for every in (1, 2, 7)]
    assert means == pytest.approx(means[:1] * 3, abs=2e-5)


@three
def test_neither_does_that_of_exact(setting):
    pipe = make_pipe(setting)
    means = [guided(pipe, 12, mode="exact", every=every).mean().item() for every in (1, 2, 7)]
    assert means == pytest.approx(means[:1] * 3, abs=5e-4)


@pytest.mark.slow
@matrix([s for s in ONE_EACH if s.prediction not in ("flow_prediction", "reversed_flow", "trigflow")])
def test_exact_leaves_scaling_to_the_pipeline(setting):
    """A second ``scale_model_input`` in a step may move a scheduler on, or scale for the next of two calls."""
    pipe, calls = make_pipe(setting), []
    scale = pipe.scheduler.scale_model_input
    pipe.scheduler.scale_model_input = lambda x, *args: calls.append(len(x)) or scale(x, *args)
    sample(pipe, 6)
    own = calls.copy()
    calls.clear()
    guided(pipe, 6, mode="exact")
    assert calls == own != []


@modes
def test_mean_is_linear_in_scale(mode):
    pipe = make_pipe(PLAIN["DPMSolverMultistep epsilon"])
    unguided = sample(pipe, 20)
    shifts = [(guided(pipe, 20, mode=mode, scale=c) - unguided).mean().item() for c in (-1.0, 0.0, 0.5, 2.0)]
    assert shifts == pytest.approx([c * shifts[3] / 2 for c in (-1.0, 0.0, 0.5, 2.0)], abs=1e-5)
    assert shifts[3] > 1


def test_guidances_add_their_rewards():
    pipe = make_pipe(PLAIN["DPMSolverMultistep epsilon"])
    expected = guided(pipe, 20)
    scales_and_modes = [(0.25, "exact"), (0.25, "x0"), (0.5, "exact")]
    parts = [Guidance(tilt, s, m, space="latent", data_variance=STD**2) for s, m in scales_and_modes]
    with parts[0].attach(pipe), parts[1].attach(pipe), parts[2].attach(pipe):
        together = sample(pipe, 20)
    assert together.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_data_variance_matters_to_x0_alone():
    pipe = make_pipe(PLAIN["EulerDiscrete epsilon"])
    noise = centered(pipe, 20)

    def means(mode):
        return [(guided(pipe, 20, mode=mode, data_variance=v) - noise).mean().item() for v in (0.25, 0.64, 1.0)]

    x0, exact = means("x0"), means("exact")
    assert x0[0] < x0[1] < x0[2]
    assert exact == [exact[0]] * 3
    assert x0[1] == pytest.approx(exact[1], abs=1e-5)
