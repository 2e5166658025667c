"""From the denoiser's output to the predicted clean sample, and a shift of that sample back into the output.

With x = αx₀ + σε, N = √(α² + σ²), α' = α/N and σ' = σ/N, for a model output m:

| prediction | x̂₀         | write back x̂₀ + Δ |
| ---------- | ----------- | ------------------ |
| epsilon    | (x − σm)/α  | m − (α/σ)Δ         |
| v          | α'x/N − σ'm | m − Δ/σ'           |
| flow       | x − σm      | m − Δ/σ            |
| sample     | m           | m + Δ              |

Each row is x̂₀ = a·x + b·m with weights that depend on the noise level alone, so that the last column is m +
Δ/b.

Epsilon: Ho et al. 2020 (arXiv:2006.11239). v: Salimans & Ho 2022 (arXiv:2202.00512), with the normalisation
by N that makes it hold for Euler's α = 1 too. Flow: Lipman et al. 2023 (arXiv:2210.02747). Everything is
computed in float32 or better; the shifted output has the dtype of the output. A shift has no place to go
where the write-back divides by σ = 0: the sample is clean already, and the output is returned as it is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from clip_guidance.guidance.noise import NoiseLevel, UnsupportedSchedulerError


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is if it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class PredictionType:
    """One row of the table; x̂₀ = sample_weight·x + output_weight·m gives both of its columns.

    Attributes:
        sample_weight: Weight of the noisy sample in x̂₀ at a noise level.
        output_weight: Weight of the model output in x̂₀ at a noise level.
    """

    sample_weight: Callable[[NoiseLevel], float]
    output_weight: Callable[[NoiseLevel], float]

    def to_x0(self, model_output: Tensor, sample: Tensor, level: NoiseLevel) -> Tensor:
        """Predicted clean sample, of the shape of ``sample``, differentiable in both tensors."""
        sample, model_output = at_least_float32(sample), at_least_float32(model_output)
        return self.sample_weight(level) * sample + self.output_weight(level) * model_output

    def write_back(self, model_output: Tensor, delta: Tensor, level: NoiseLevel) -> Tensor:
        """The model output whose predicted clean sample is that of ``model_output`` plus ``delta``.

        The result has the dtype of ``model_output``.
        """
        weight = self.output_weight(level)
        if weight == 0:
            return model_output
        return (at_least_float32(model_output) + delta / weight).to(model_output.dtype)


def _ratio(numerator: float, denominator: float) -> float:
    """Quotient that is infinite, not an error, at α = 0: there epsilon says nothing about x₀."""
    return numerator / denominator if denominator else math.copysign(math.inf, numerator)


_EPSILON = PredictionType(lambda n: _ratio(1, n.alpha), lambda n: -_ratio(n.sigma, n.alpha))
_V = PredictionType(lambda n: n.alpha / (n.alpha**2 + n.sigma**2), lambda n: -n.sigma / math.hypot(n.alpha, n.sigma))
_FLOW = PredictionType(lambda n: 1.0, lambda n: -n.sigma)
_SAMPLE = PredictionType(lambda n: 0.0, lambda n: 1.0)

PREDICTION_TYPES = {
    "epsilon": _EPSILON,
    "v_prediction": _V,
    "flow_prediction": _FLOW,
    "sample": _SAMPLE,
    "original_sample": _SAMPLE,  # Euler's other name for it
}


def prediction_type(scheduler: Any) -> PredictionType:
    """What the scheduler takes the model output to be, by its config.

    Raises:
        UnsupportedSchedulerError: ``scheduler.config.prediction_type`` is none of :data:`PREDICTION_TYPES`.
    """
    name = getattr(scheduler.config, "prediction_type", None)
    if name not in PREDICTION_TYPES:
        raise UnsupportedSchedulerError(
            f"guidance knows the prediction types {', '.join(PREDICTION_TYPES)}; "
            f"{type(scheduler).__name__}.config.prediction_type is {name!r}"
        )
    return PREDICTION_TYPES[name]


@dataclass(frozen=True)
class Prediction:
    """A model output on its way into ``scheduler.step``, after classifier-free guidance.

    Attributes:
        model_output: What the scheduler is about to read, (B, ...).
        timestep: The timestep of the step.
        sample: The noisy sample x, of the same shape.
        level: The noise level of ``sample``.
        kind: What ``model_output`` predicts.
    """

    model_output: Tensor
    timestep: float | Tensor
    sample: Tensor
    level: NoiseLevel
    kind: PredictionType

    @cached_property
    def x0(self) -> Tensor:
        """The predicted clean sample, (B, ...), detached and in float32 or better."""
        return self.kind.to_x0(self.model_output.detach(), self.sample.detach(), self.level)
