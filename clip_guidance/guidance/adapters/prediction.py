"""Prediction types: from the model output to x̂₀, and a shift of x̂₀ back into the output.

With x = αx₀ + σε, N = √(α² + σ²), α' = α/N and σ' = σ/N, for a model output m:

| prediction | x̂₀                  | write back x̂₀ + Δ |
| ---------- | -------------------- | ------------------ |
| epsilon    | (x − σm)/α           | m − (α/σ)Δ         |
| v          | α'x/N − σ'm          | m − Δ/σ'           |
| flow       | x − σm               | m − Δ/σ            |
| sample     | m                    | m + Δ              |
| trigflow   | α'x/N − σ'm/N        | m − (N/σ')Δ        |
| EDM, CM    | c_skip·x + c_out·m   | m + Δ/c_out        |
| LCM        | c_skip·x + c_out·x̂₀' | as x̂₀' + Δ/c_out   |

Each row is x̂₀ = a·x + b·m with weights that depend on the noise level and on constants of the scheduler alone, so
that the last column is m + Δ/b. In LCM's, x̂₀' is that of one of the rows above it: the consistency function's
boundary condition stands between the prediction and what the step goes on with.

Epsilon: Ho et al. 2020 (arXiv:2006.11239). v: Salimans & Ho 2022 (arXiv:2202.00512), with the normalisation
by N that makes it hold for Euler's α = 1 too. Flow: Lipman et al. 2023 (arXiv:2210.02747). EDM: Karras et al. 2022
(arXiv:2206.00364), equation 7. CM: Song et al. 2023 (arXiv:2303.01469). LCM: Luo et al. 2023 (arXiv:2310.04378).
TrigFlow: Lu & Song 2025 (arXiv:2410.11081), where m carries N = σ_d as x does. Everything is computed in float32 or
better; the shifted output has the dtype of the output. Where the write-back would divide by σ = 0, or by what rounding
makes of it, the sample is clean already, and the output is returned unchanged.

Which scheduler follows which rule is in :data:`.schedulers.SCHEDULERS`.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from clip_guidance._tensors import at_least_float32
from clip_guidance.guidance.adapters.noise_level import NoiseLevel, UnsupportedSchedulerError

_ROUNDING = 1e-7  # of a weight: float32 leaves of a consistency model's last c_out, which is 0, some 1e-10


@dataclass(frozen=True)
class PredictionType:
    """Hold a row of the table; both columns follow from x̂₀ = sample_weight·x + output_weight·m.

    Attributes:
        sample_weight: Weight of the noisy sample in x̂₀ at a noise level.
        output_weight: Weight of the model output in x̂₀ at a noise level.
    """

    sample_weight: Callable[[NoiseLevel], float]
    output_weight: Callable[[NoiseLevel], float]

    def to_x0(self, model_output: Tensor, sample: Tensor, level: NoiseLevel) -> Tensor:
        """Compute x̂₀, of the shape of ``sample``, differentiable in both tensors."""
        sample, model_output = at_least_float32(sample), at_least_float32(model_output)
        return self.sample_weight(level) * sample + self.output_weight(level) * model_output

    def write_back(self, model_output: Tensor, delta: Tensor, level: NoiseLevel) -> Tensor:
        """Compute the model output whose x̂₀ exceeds the one of ``model_output`` by ``delta``.

        The result has the dtype of ``model_output``.
        """
        weight = self.output_weight(level)
        if abs(weight) <= _ROUNDING:
            return model_output
        return (at_least_float32(model_output) + delta / weight).to(model_output.dtype)


def _ratio(numerator: float, denominator: float) -> float:
    """Divide; at α = 0, where epsilon says nothing about x₀, the quotient is infinite."""
    return numerator / denominator if denominator else math.copysign(math.inf, numerator)


EPSILON = PredictionType(lambda n: _ratio(1, n.alpha), lambda n: -_ratio(n.sigma, n.alpha))
V = PredictionType(lambda n: n.alpha / (n.alpha**2 + n.sigma**2), lambda n: -n.sigma / math.hypot(n.alpha, n.sigma))
FLOW = PredictionType(lambda n: 1.0, lambda n: -n.sigma)
REVERSED_FLOW = PredictionType(lambda n: 1.0, lambda n: n.sigma)  # m = x₀ − ε
SAMPLE = PredictionType(lambda n: 0.0, lambda n: 1.0)
TRIGFLOW = PredictionType(lambda n: n.alpha / (n.alpha**2 + n.sigma**2), lambda n: -n.sigma / (n.alpha**2 + n.sigma**2))

#: Name in a scheduler's config -> its prediction type.
PREDICTION_TYPES = {
    "epsilon": EPSILON,
    "v_prediction": V,
    "flow_prediction": FLOW,
    "sample": SAMPLE,
    "original_sample": SAMPLE,  # Euler's other name for it
}

#: From a scheduler to what it takes the model output to be.
PredictionRule = Callable[[Any], PredictionType]


def always(kind: PredictionType) -> PredictionRule:
    """Make the rule of a scheduler class with one prediction type, whatever its config says."""
    return lambda scheduler: kind


def by_config(scheduler: Any, known: Collection[str] = tuple(PREDICTION_TYPES)) -> PredictionType:
    """Return the prediction type that the config names.

    Raises:
        UnsupportedSchedulerError: The config names none, or one that is not among ``known``.
    """
    name: Any = getattr(scheduler.config, "prediction_type", None)
    if name not in known:
        raise UnsupportedSchedulerError(
            f"guidance knows the prediction types {', '.join(known)}; "
            f"{type(scheduler).__name__}.config.prediction_type is {name!r}"
        )
    return PREDICTION_TYPES[name]


def dpm_solver(scheduler: Any) -> PredictionType:
    """Return the prediction type that the config names, of the same family as the noise levels.

    Raises:
        UnsupportedSchedulerError: The prediction type belongs to one family and the noise levels to another.
    """
    flow_sigmas, name = scheduler.config.use_flow_sigmas, scheduler.config.prediction_type
    if (name == "flow_prediction" and not flow_sigmas) or (name == "v_prediction" and flow_sigmas):
        raise UnsupportedSchedulerError(
            f"{type(scheduler).__name__} with prediction_type={name!r} and use_flow_sigmas={flow_sigmas} computes no "
            "clean sample: flow_prediction needs flow sigmas, v_prediction must be without"
        )
    return by_config(scheduler)


def flow(scheduler: Any) -> PredictionType:
    """Return flow prediction; reversed with inverted sigmas.

    Raises:
        UnsupportedSchedulerError: The scheduler inverts its sigmas and draws noise at every step.
    """
    if not getattr(scheduler.config, "invert_sigmas", False):
        return FLOW
    if getattr(scheduler.config, "stochastic_sampling", True):
        # Of diffusers' schedulers only the deterministic Euler follows the inverted flow; the others' x₀ is x − σm.
        raise UnsupportedSchedulerError(
            f"{type(scheduler).__name__} that draws noise at every step computes no clean sample from inverted sigmas"
        )
    return REVERSED_FLOW


def trigflow(scheduler: Any) -> PredictionType:
    """Return the prediction of TrigFlow.

    Raises:
        UnsupportedSchedulerError: The config names another one.
    """
    if scheduler.config.prediction_type != "trigflow":
        raise UnsupportedSchedulerError(
            f"guidance knows the prediction type trigflow of {type(scheduler).__name__}; "
            f"its config.prediction_type is {scheduler.config.prediction_type!r}"
        )
    return TRIGFLOW


def preconditioned(scheduler: Any) -> PredictionType:
    """Return EDM's prediction, with c_skip and c_out from ``precondition_outputs``.

    Raises:
        UnsupportedSchedulerError: The config names neither epsilon nor v_prediction.
    """
    by_config(scheduler, ("epsilon", "v_prediction"))
    return PredictionType(
        lambda n: scheduler.precondition_outputs(1.0, 0.0, n.sigma),
        lambda n: scheduler.precondition_outputs(0.0, 1.0, n.sigma),
    )


def consistency(scheduler: Any) -> PredictionType:
    """Return CM's prediction, with c_skip and c_out from the scheduler's boundary condition."""

    def scaling(level: NoiseLevel, which: int) -> float:
        return float(scheduler.get_scalings_for_boundary_condition(level.sigma)[which])

    return PredictionType(lambda n: scaling(n, 0), lambda n: scaling(n, 1))


def latent_consistency(scheduler: Any) -> PredictionType:
    """Return LCM's prediction: the boundary condition around the config's prediction.

    Raises:
        UnsupportedSchedulerError: The config names no known prediction type.
    """
    inner = by_config(scheduler)

    def scalings(level: NoiseLevel) -> tuple[float, float]:
        return scheduler.get_scalings_for_boundary_condition_discrete(level.timestep)

    def sample_weight(level: NoiseLevel) -> float:
        c_skip, c_out = scalings(level)
        return c_skip + c_out * inner.sample_weight(level)

    return PredictionType(sample_weight, lambda n: scalings(n)[1] * inner.output_weight(n))


@dataclass(frozen=True)
class Prediction:
    """Hold a model output on its way into ``scheduler.step``, after classifier-free guidance.

    Attributes:
        model_output: What the scheduler is about to read, (B, ...).
        sample: The noisy sample x, of the same shape.
        level: The noise level of ``sample``.
        kind: What ``model_output`` predicts.
    """

    model_output: Tensor
    sample: Tensor
    level: NoiseLevel
    kind: PredictionType

    @cached_property
    def x0(self) -> Tensor:
        """Compute the predicted clean sample, (B, ...), detached and in float32 or better."""
        return self.kind.to_x0(self.model_output.detach(), self.sample.detach(), self.level)
