import math
from types import SimpleNamespace

import diffusers
import pytest
import torch
from helpers.gaussian import make_pipe, sample, watched
from helpers.scheduler_matrix import SETTINGS, matrix

from clip_guidance.guidance.adapters.noise_level import NoiseLevel, UnsupportedSchedulerError
from clip_guidance.guidance.adapters.prediction import PREDICTION_TYPES, Prediction
from clip_guidance.guidance.adapters.schedulers import noise_level, num_steps, prediction_type

LEVELS = [NoiseLevel(0.8, 0.6), NoiseLevel(1.0, 14.6), NoiseLevel(0.1, 0.995), NoiseLevel(0.3, 0.7)]
#: They never tell what they take the clean sample to be; the others at every step, or by ending with it.
SILENT = ("IPNDMScheduler", "PNDMScheduler", "TCDScheduler")
AT_THE_END = (
    "CMStochasticIterativeScheduler",
    "DDPMWuerstchenScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "LTXEulerAncestralRFScheduler",
    "MiniMaxH3Scheduler",
)
PREDICT_X0 = ("dpmsolver++", "sde-dpmsolver++", "data_prediction", None)


def tensors(count, shape=(2, 3, 4)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def own_x0(scheduler, result, output, x, level):
    """The clean sample that a scheduler took from an output that it has just stepped with; None if it does not tell."""
    if isinstance(result, tuple):  # CogVideoXDPM
        return result[1]
    for name in ("pred_original_sample", "denoised"):
        if result.get(name) is not None:
            # SCM's sample carries σ_d, and so does what it predicts
            return result[name] / (scheduler.config.sigma_data if "SCM" in type(scheduler).__name__ else 1)
    if not hasattr(scheduler, "convert_model_output"):
        return None
    scheduler._step_index -= 1
    found = scheduler.convert_model_output(output, sample=x)
    scheduler._step_index += 1
    if scheduler.config.get("predict_x0", True) and scheduler.config.get("algorithm_type") in PREDICT_X0:
        return found
    alpha, sigma = level
    return (x - sigma * found) / alpha


@matrix(default=[setting for setting in SETTINGS if not setting.note])
def test_x0_is_the_schedulers_own_and_moves_by_what_is_written_back(setting):
    """At every step: x̂₀ of the ideal denoiser's output is E[x₀ | x], and the scheduler's own; so is x̂₀ + Δ."""
    pipe, told, last = make_pipe(setting), [], {}
    scheduler, (delta,) = pipe.scheduler, tensors(1, (2, 1, 1, 1))

    def look(step, output, t, x):
        level, kind = noise_level(scheduler, t), prediction_type(scheduler)
        x0 = Prediction(output, x, level, kind).x0
        close(x0, pipe.unet.clean(x))
        shifted = kind.write_back(output, delta, level)
        close(kind.to_x0(shifted, x, level), x0 + delta)
        result = step(shifted)
        own = own_x0(scheduler, result, shifted, x, pipe.unet.level)
        if own is not None:
            told.append(close(own, x0 + delta))
        last.update(result=result, x0=x0 + delta)
        return result

    with watched(scheduler, look):
        sample(pipe, 5)
    if setting.scheduler in AT_THE_END:
        close(last["result"].prev_sample, last["x0"], atol=1e-3)
    assert len(told) == (0 if setting.scheduler in AT_THE_END + SILENT else num_steps(scheduler))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_lcms_boundary_condition_stands_between_prediction_and_step(prediction):
    scheduler = diffusers.LCMScheduler(prediction_type=prediction, clip_sample=False, timestep_scaling=0.01)
    scheduler.set_timesteps(4)
    kind, (output, x, delta) = prediction_type(scheduler), tensors(3)
    for t in scheduler.timesteps:
        level = noise_level(scheduler, t)
        shifted = kind.write_back(output, delta, level)
        close(scheduler.step(shifted, t, x).denoised, kind.to_x0(output, x, level) + delta)
    assert scheduler.get_scalings_for_boundary_condition_discrete(int(t))[0] > 0.03  # by default it is next to nothing


def close(found, expected, atol=2e-4):
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=atol)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_write_back_moves_x0_by_delta(kind, level):
    kind = PREDICTION_TYPES[kind]
    output, sample, delta = (x.double() for x in tensors(3))
    moved = kind.to_x0(kind.write_back(output, delta, level), sample, level)
    torch.testing.assert_close(moved, kind.to_x0(output, sample, level) + delta)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
def test_the_predictions_of_one_pair_agree(kind):
    """X = αx₀ + σε with the target that each network is trained on must give back x₀."""
    x0, epsilon = (x.double() for x in tensors(2))
    level = NoiseLevel(0.3, 0.7) if kind == "flow_prediction" else NoiseLevel(0.8, 0.6)
    targets = {
        "epsilon": epsilon,
        "v_prediction": level.alpha * epsilon - level.sigma * x0,
        "flow_prediction": epsilon - x0,
    }
    sample = level.alpha * x0 + level.sigma * epsilon
    torch.testing.assert_close(PREDICTION_TYPES[kind].to_x0(targets[kind], sample, level), x0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_dtypes(kind, dtype):
    output, sample, delta = tensors(3)
    kind = PREDICTION_TYPES[kind]
    x0 = kind.to_x0(output.to(dtype), sample.to(dtype), LEVELS[0])
    assert x0.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert kind.write_back(output.to(dtype), delta, LEVELS[0]).dtype == dtype


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
def test_a_clean_sample_is_not_shifted(kind):
    output, _, delta = tensors(3)
    assert PREDICTION_TYPES[kind].write_back(output, delta, NoiseLevel(1.0, 0.0)).equal(output)


def test_epsilon_of_pure_noise_is_not_shifted():
    output, _, delta = tensors(3)
    epsilon, pure_noise = PREDICTION_TYPES["epsilon"], NoiseLevel(0.0, 1.0)
    assert epsilon.write_back(output, delta, pure_noise).equal(output)
    assert math.isinf(epsilon.sample_weight(pure_noise))


def test_eulers_other_name_of_the_clean_sample():
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type="original_sample")
    assert prediction_type(scheduler) is PREDICTION_TYPES["sample"]


@pytest.mark.parametrize("config", [{"prediction_type": "score"}, {}])
def test_an_unknown_prediction_type_is_refused(config):
    scheduler = type("DDIMScheduler", (), {"config": SimpleNamespace(**config)})()
    with pytest.raises(UnsupportedSchedulerError, match=r"epsilon, v_prediction.*DDIMScheduler.*('score'|None)"):
        prediction_type(scheduler)


@pytest.mark.parametrize(
    "name", ["DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep", "SASolver"]
)
@pytest.mark.parametrize(("prediction", "flow"), [("flow_prediction", False), ("v_prediction", True)])
def test_a_prediction_of_one_family_with_the_sigmas_of_another_is_refused(name, prediction, flow):
    scheduler = getattr(diffusers, f"{name}Scheduler")(prediction_type=prediction, use_flow_sigmas=flow)
    expected = (
        f"{name}Scheduler with prediction_type='{prediction}' and use_flow_sigmas={flow} computes no clean sample"
    )
    with pytest.raises(UnsupportedSchedulerError, match=expected):
        prediction_type(scheduler)


def test_inverted_sigmas_that_the_scheduler_itself_does_not_follow_are_refused():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True, stochastic_sampling=True)
    with pytest.raises(UnsupportedSchedulerError, match="FlowMatchEulerDiscreteScheduler that draws noise at every"):
        prediction_type(scheduler)


@pytest.mark.parametrize(
    ("name", "prediction", "known"),
    [
        (
            "SCM",
            "epsilon",
            "the prediction type trigflow of SCMScheduler; its config.prediction_type is 'epsilon'",
        ),
        (
            "EDMEuler",
            "sample",
            "the prediction types epsilon, v_prediction; EDMEulerScheduler.config.* is 'sample'",
        ),
    ],
)
def test_other_predictions_of_special_schedulers_are_refused(name, prediction, known):
    scheduler = getattr(diffusers, f"{name}Scheduler")(prediction_type=prediction)
    with pytest.raises(UnsupportedSchedulerError, match=known):
        prediction_type(scheduler)
