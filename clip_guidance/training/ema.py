"""The average of a model's weights: as diffusers' ``EMAModel``, but resumed bit for bit.

The saved model is this average. After update number t, with weights θ,

    θ̄ ← d·θ̄ + (1 − d)·θ,    d = min(decay, (1 + t)/(10 + t)).

With a constant d, a run of n steps would leave a share ``decay^n`` of the average to the weights that the run began
with: a quarter after 1,337 steps at 0.999. The rising decay is TensorFlow's (``ExponentialMovingAverage`` with
``num_updates``); from t ≈ 9/(1 − decay) on it is the constant one.

diffusers' ``EMAModel`` has the same decay, and three things less: it is no module that can be evaluated during
training, its state is a list without names, which a checkpoint of named tensors does not fit, and it rounds otherwise,
so that a run saved before would not resume bit for bit.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Parameters: TypeAlias = tuple[Tensor, ...] | list[Tensor]


def make_ema_model(model: nn.Module, decay: float) -> AveragedModel:
    """Make a copy of a model that averages its weights; the first update copies them.

    Args:
        model: What is trained; its ``update_parameters(model)`` is to be called after each step.
        decay: In (0, 1), the largest share that an update leaves of the average. The higher, the more steps the average
            covers: about 1/(1 − decay).

    Raises:
        ValueError: ``decay`` is out of range.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> average = make_ema_model(model, decay=0.999)
        >>> for weight in (1.0, 2.0):
        ...     _ = torch.nn.init.constant_(model.weight, weight)
        ...     average.update_parameters(model)
        >>> round(average.module.weight.item(), 3)  # (2 · 1 + 9 · 2)/11, of updates 0 and 1
        1.818
    """
    if not 0 < decay < 1:
        raise ValueError(f"ema_decay: expected a share in (0, 1), got {decay}")

    @torch.no_grad()
    def update(averages: Parameters, weights: Parameters, updates: Tensor | int) -> None:
        t = int(updates)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + t) / (10 + t)))

    return AveragedModel(model, multi_avg_fn=update)
