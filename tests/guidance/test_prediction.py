import math
from types import SimpleNamespace

import pytest
import torch
from tiny_pipeline import make_scheduler

from clip_guidance.guidance.noise import NoiseLevel, UnsupportedSchedulerError, noise_level
from clip_guidance.guidance.prediction import PREDICTION_TYPES, prediction_type

LEVELS = [NoiseLevel(0.8, 0.6), NoiseLevel(1.0, 14.6), NoiseLevel(0.1, 0.995), NoiseLevel(0.3, 0.7)]
PEERS = [(name, kind) for name in ("ddim", "euler", "dpm") for kind in ("epsilon", "v_prediction", "sample")]


def tensors(count, shape=(2, 3, 4)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


@pytest.mark.parametrize(("name", "kind"), [*PEERS, ("dpm", "flow_prediction")])
def test_x0_is_the_schedulers_own_pred_original_sample(name, kind):
    config = {"use_flow_sigmas": True} if kind == "flow_prediction" else {}
    scheduler = make_scheduler(name, prediction_type=kind, **config)
    scheduler.set_timesteps(6)
    output, sample = tensors(2)
    for t in scheduler.timesteps:
        scheduler.scale_model_input(sample, t)
        x0 = prediction_type(scheduler).to_x0(output, sample, noise_level(scheduler, t))
        step = scheduler.step(output, t, sample)
        expected = scheduler.model_outputs[-1] if name == "dpm" else step.pred_original_sample
        torch.testing.assert_close(x0, expected, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("config", [{"prediction_type": "score"}, {}])
def test_an_unknown_prediction_type_is_refused(config):
    scheduler = SimpleNamespace(config=SimpleNamespace(**config))
    with pytest.raises(UnsupportedSchedulerError, match=r"epsilon, v_prediction.*SimpleNamespace.*('score'|None)"):
        prediction_type(scheduler)
