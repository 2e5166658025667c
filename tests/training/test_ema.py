"""The average of the weights: its recursion, what a short run leaves of the beginning, and what it refuses."""

import pytest
import torch
from torch import nn

from clip_guidance.training.ema import make_ema_model


def train(model: nn.Linear, ema: nn.Module, values: list[float]) -> None:
    for value in values:
        nn.init.constant_(model.weight, value)
        ema.update_parameters(model)


def weight(ema: nn.Module) -> float:
    return ema.module.weight.item()


def test_the_average_follows_its_recursion():
    model = nn.Linear(1, 1, bias=False)
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).tolist()
    ema, expected = make_ema_model(model, 0.95), values[0]
    for t, value in enumerate(values[1:], 1):
        share = min(0.95, (1 + t) / (10 + t))
        expected = share * expected + (1 - share) * value
    train(model, ema, values)
    assert weight(ema) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.99999])
@pytest.mark.parametrize("steps", [50, 1337])
def test_little_is_left_of_the_weights_a_run_began_with(decay, steps):
    model = nn.Linear(1, 1, bias=False)
    ema = make_ema_model(model, decay)
    train(model, ema, [1.0] + [0.0] * steps)  # the average is the share of the first weights
    assert weight(ema) < 1e-6


def test_after_a_long_run_it_is_the_constant_average():
    model = nn.Linear(1, 1, bias=False)
    ema = make_ema_model(model, 0.9)
    train(model, ema, [0.0] * 500)
    before = weight(ema)
    train(model, ema, [1.0])
    assert weight(ema) - before == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"ema_decay: expected a share in \(0, 1\), got"):
        make_ema_model(nn.Linear(1, 1), decay)
