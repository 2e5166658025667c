"""What is known of each scheduler: its noise levels, and what its model predicts.

Each known class is one row of :data:`SCHEDULERS`. A scheduler is found by the name of its class or of the nearest
base class. The families of noise levels are in :mod:`.noise_level`, the rules of prediction in :mod:`.prediction`,
the schedulers that cannot be guided in :mod:`.unsupported`.
"""

import math
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from clip_guidance.guidance.adapters import noise_level as levels
from clip_guidance.guidance.adapters import prediction
from clip_guidance.guidance.adapters.by_class import by_class, nearest, shortened
from clip_guidance.guidance.adapters.noise_level import LevelRule, NoiseLevel, UnsupportedSchedulerError
from clip_guidance.guidance.adapters.prediction import PredictionRule, PredictionType
from clip_guidance.guidance.adapters.unsupported import UNSUPPORTED_SCHEDULERS

_ROUNDING = 1e-5  # SCM rounds π/2 up to 1.5708, whose cosine is negative; float32 rounds sigmas beyond 1


def _all_timesteps(scheduler: Any) -> int:
    return len(scheduler.timesteps)


def _without_clean_end(scheduler: Any) -> int:
    """Leave out the last timestep, which is the clean end."""
    return len(scheduler.timesteps) - 1


def _between_sigmas(scheduler: Any) -> int:
    """Count the steps between sigmas; with a user's sigmas the last timestep is the clean end."""
    return len(scheduler.sigmas) - 1


@dataclass(frozen=True)
class SchedulerAdapter:
    """One row of the table.

    Attributes:
        level: From (scheduler, timestep) to the noise level before the step.
        prediction: From the scheduler to what it takes the model output to be; by its config unless its class
            decides.
        num_steps: From the scheduler to the number of times that a full run calls ``scheduler.step``.
        of_consistency: Whether it samples consistency functions: each step goes to the end of the trajectory, and
            back to a noise level by fresh noise.
    """

    level: LevelRule
    prediction: PredictionRule = prediction.by_config
    num_steps: Callable[[Any], int] = _all_timesteps
    of_consistency: bool = False


#: Class name -> its row.
SCHEDULERS: dict[str, SchedulerAdapter] = {
    "DDIMScheduler": SchedulerAdapter(levels.variance_preserving),
    "DDIMParallelScheduler": SchedulerAdapter(levels.variance_preserving),
    "DDPMScheduler": SchedulerAdapter(levels.variance_preserving),
    "DDPMParallelScheduler": SchedulerAdapter(levels.variance_preserving),
    "PNDMScheduler": SchedulerAdapter(levels.variance_preserving),
    "LCMScheduler": SchedulerAdapter(levels.variance_preserving, prediction.latent_consistency, of_consistency=True),
    "TCDScheduler": SchedulerAdapter(levels.variance_preserving),
    "UnCLIPScheduler": SchedulerAdapter(levels.variance_preserving),
    "CogVideoXDDIMScheduler": SchedulerAdapter(levels.variance_preserving),
    "CogVideoXDPMScheduler": SchedulerAdapter(levels.variance_preserving),
    "DDPMWuerstchenScheduler": SchedulerAdapter(
        levels.wuerstchen, prediction.always(prediction.EPSILON), _without_clean_end
    ),
    "IPNDMScheduler": SchedulerAdapter(levels.rotation, prediction.always(prediction.V)),
    "EulerDiscreteScheduler": SchedulerAdapter(levels.variance_exploding),
    "EulerAncestralDiscreteScheduler": SchedulerAdapter(levels.variance_exploding),
    "HeunDiscreteScheduler": SchedulerAdapter(levels.variance_exploding),
    "LMSDiscreteScheduler": SchedulerAdapter(levels.variance_exploding),
    "EDMEulerScheduler": SchedulerAdapter(levels.variance_exploding, prediction.preconditioned),
    "EDMDPMSolverMultistepScheduler": SchedulerAdapter(levels.variance_exploding, prediction.preconditioned),
    "CosineDPMSolverMultistepScheduler": SchedulerAdapter(levels.variance_exploding, prediction.preconditioned),
    "CMStochasticIterativeScheduler": SchedulerAdapter(
        levels.variance_exploding, prediction.consistency, of_consistency=True
    ),
    "KDPM2DiscreteScheduler": SchedulerAdapter(levels.with_midpoint(lambda s, index: s.sigmas_interpol[index])),
    "KDPM2AncestralDiscreteScheduler": SchedulerAdapter(
        levels.with_midpoint(lambda s, index: s.sigmas_interpol[index - 1])
    ),
    "DPMSolverSDEScheduler": SchedulerAdapter(levels.with_midpoint(lambda s, index: s.mid_point_sigma)),
    "DPMSolverMultistepScheduler": SchedulerAdapter(levels.dpm_solver, prediction.dpm_solver),
    "DPMSolverSinglestepScheduler": SchedulerAdapter(levels.dpm_solver, prediction.dpm_solver),
    "UniPCMultistepScheduler": SchedulerAdapter(levels.dpm_solver, prediction.dpm_solver),
    "DEISMultistepScheduler": SchedulerAdapter(levels.dpm_solver, prediction.dpm_solver),
    "SASolverScheduler": SchedulerAdapter(levels.dpm_solver, prediction.dpm_solver),
    "FlowMatchEulerDiscreteScheduler": SchedulerAdapter(levels.flow, prediction.flow),
    "FlowMatchHeunDiscreteScheduler": SchedulerAdapter(levels.flow, prediction.flow),
    "FlowMatchLCMScheduler": SchedulerAdapter(levels.flow, prediction.flow, of_consistency=True),
    "LTXEulerAncestralRFScheduler": SchedulerAdapter(levels.flow, prediction.always(prediction.FLOW), _between_sigmas),
    "MiniMaxH3Scheduler": SchedulerAdapter(levels.flow, prediction.always(prediction.REVERSED_FLOW)),
    "SCMScheduler": SchedulerAdapter(levels.trigflow, prediction.trigflow, _without_clean_end, of_consistency=True),
}


def find_scheduler_adapter(scheduler: Any) -> SchedulerAdapter:
    """Find the row of the table for a scheduler's class or the nearest of its base classes.

    Raises:
        UnsupportedSchedulerError: The scheduler belongs to no known family, or to one that cannot be guided.
    """
    advice = (
        "Exchange it before attaching, such as by `pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`"
    )
    name = by_class(ChainMap[str, Any](SCHEDULERS, UNSUPPORTED_SCHEDULERS), scheduler)
    if name is None:
        raise UnsupportedSchedulerError(
            f"guidance knows the noise levels of {nearest(type(scheduler).__name__, SCHEDULERS)}; the pipeline's "
            f"scheduler is a {shortened(type(scheduler).__name__, 40)}. {advice}"
        )
    if name in UNSUPPORTED_SCHEDULERS:
        raise UnsupportedSchedulerError(f"{name} cannot be guided: {UNSUPPORTED_SCHEDULERS[name]}. {advice}")
    return SCHEDULERS[name]


def noise_level(scheduler: Any, timestep: float | Tensor, adapter: SchedulerAdapter | None = None) -> NoiseLevel:
    """Return the noise level of the sample that ``scheduler.step`` is about to receive.

    Args:
        scheduler: A diffusers scheduler after ``set_timesteps``; a subclass of a known class is known too.
        timestep: The timestep of the step, as the pipeline passes it.
        adapter: The scheduler's row of the table; None to look it up.

    Returns:
        The level, with alpha in [0, 1] and sigma >= 0.

    Raises:
        UnsupportedSchedulerError: The scheduler belongs to no known family, or its arrays hold no such level, as
            those of sigmas that were spaced for another family.
    """
    adapter = adapter or find_scheduler_adapter(scheduler)
    level = adapter.level(scheduler, timestep)
    alpha, sigma = min(max(level.alpha, 0.0), 1.0), max(level.sigma, 0.0)
    if not (abs(alpha - level.alpha) <= _ROUNDING and sigma - level.sigma <= _ROUNDING and sigma < math.inf):
        raise UnsupportedSchedulerError(
            f"guidance expected alpha in [0, 1] and a finite sigma >= 0, {type(scheduler).__name__} is at "
            f"alpha={level.alpha:g}, sigma={level.sigma:g} at timestep {float(levels.shared_timestep(timestep)):g}: "
            "are its sigmas spaced for the kind of model that it is configured for?"
        )
    return replace(level, alpha=alpha, sigma=sigma, of_consistency=adapter.of_consistency)


def prediction_type(scheduler: Any) -> PredictionType:
    """Return what the scheduler takes the model output to be, by its class and config.

    Raises:
        UnsupportedSchedulerError: The scheduler is not in the table, or computes no clean sample from the
            ``prediction_type`` of its config.
    """
    return find_scheduler_adapter(scheduler).prediction(scheduler)


def num_steps(scheduler: Any) -> int:
    """Count the calls of ``scheduler.step`` in a full run, each stage of a second-order step.

    Raises:
        UnsupportedSchedulerError: The scheduler is not in the table.
    """
    return find_scheduler_adapter(scheduler).num_steps(scheduler)


def fraction_done(scheduler: Any, index: int, first: int = 0, count: int | None = None) -> float:
    """Return the fraction, in [0, 1), of a run that is done before the step at ``index``.

    A step that is taken again counts once: :mod:`clip_guidance.guidance.methods.recurrence` then keeps the fractions
    in ``scheduler.fractions_done``.

    Args:
        scheduler: The scheduler after ``set_timesteps``.
        index: Position of the step in the scheduler's timesteps.
        first: Position of the run's first step; image to image begins inside the timesteps.
        count: Number of the run's steps; None if it runs to the end of the timesteps.
    """
    first = max(first, 0)
    end = num_steps(scheduler) if count is None else first + count
    fractions = getattr(scheduler, "fractions_done", None)
    if fractions is None:
        return (index - first) / (end - first)
    begin, end_done = fractions[first], fractions[end] if end < len(fractions) else 1.0
    return (fractions[index] - begin) / (end_done - begin)


def count_steps(scheduler: Any, timesteps: Tensor | None, first: int) -> int | None:
    """Count the steps of a run that a pipeline has cut short; None if it runs to the end.

    Args:
        scheduler: The scheduler after ``set_timesteps``.
        timesteps: The pipeline's own list of the run's timesteps; None if it keeps none.
        first: Position of the run's first step in the scheduler's timesteps.
    """
    if timesteps is None or first < 0:
        return None
    count = len(timesteps)
    same = scheduler.timesteps[first : first + count].tolist() == timesteps.tolist()
    return count if same and first + count < num_steps(scheduler) else None
