"""The average of a model's weights over its training, which is what is saved.

After update number t of it, with weights θ,

    θ̄ ← d·θ̄ + (1 − d)·θ,    d = min(decay, (1 + t)/(10 + t)).

With a constant one, a run of n steps would leave a share ``decay^n`` of the average to the weights that the run began
with: a quarter after 1,337 steps at 0.999. The rising decay is TensorFlow's (``ExponentialMovingAverage`` with
``num_updates``); from t ≈ 9/(1 − decay) on it is the constant one.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Parameters: TypeAlias = tuple[Tensor, ...] | list[Tensor]


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of ``model`` to be updated after each step; its first update copies the weights.

    Args:
        model: what is trained.
        decay: in (0, 1), the largest share that an update leaves of the average.

    Raises:
        ValueError: ``decay`` is out of range.
    """
    if not 0 < decay < 1:
        raise ValueError(f"ema_decay: expected a share in (0, 1), got {decay}")

    @torch.no_grad()
    def update(averages: Parameters, weights: Parameters, updates: Tensor | int) -> None:
        t = int(updates)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + t) / (10 + t)))

    return AveragedModel(model, multi_avg_fn=update)
