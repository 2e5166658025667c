"""The noise level at which a scheduler takes a step.

A noisy sample is x = α·x₀ + σ·ε. Schedulers keep α and σ in different forms, so they are resolved by family,
never guessed from the timestep:

- variance preserving (DDIM, Song et al. 2021, arXiv:2010.02502): α = √ᾱ_t, σ = √(1 − ᾱ_t);
- Euler (Karras et al. 2022, arXiv:2206.00364): α = 1, σ = ``sigmas[i]``;
- DPM-Solver (Lu et al. 2022, arXiv:2211.01095), with s = ``sigmas[i]``: α = 1/√(1 + s²), σ = s·α, or, with
  ``use_flow_sigmas``, α = 1 − s, σ = s.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class NoiseLevel:
    """The coefficients of x = alpha·x₀ + sigma·ε, where x is the ``sample`` that ``step`` receives."""

    alpha: float
    sigma: float


class UnsupportedSchedulerError(ValueError):
    """The scheduler's noise levels or its prediction type are not known to clip_guidance."""


def step_index(scheduler: Any, timestep: float | Tensor) -> int:
    """Position of ``timestep`` in ``scheduler.timesteps``, as the scheduler's own ``step`` will count it.

    Before the first step ``scheduler.step_index`` is still None; then it is what the scheduler would set it
    to. Schedulers that keep no index (DDIM) are looked up by the nearest timestep.
    """
    for name in ("step_index", "begin_index"):
        if (index := getattr(scheduler, name, None)) is not None:
            return int(index)
    timesteps = scheduler.timesteps
    if hasattr(scheduler, "index_for_timestep"):
        timestep = timestep.to(timesteps.device) if isinstance(timestep, Tensor) else timestep
        return int(scheduler.index_for_timestep(timestep))
    return int((timesteps.double() - float(timestep)).abs().argmin())


def _variance_preserving(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    alpha_prod = float(scheduler.alphas_cumprod[int(timestep)])
    return NoiseLevel(math.sqrt(alpha_prod), math.sqrt(1 - alpha_prod))


def _variance_exploding(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    return NoiseLevel(1.0, float(scheduler.sigmas[step_index(scheduler, timestep)]))


def _dpm_solver(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    ratio = float(scheduler.sigmas[step_index(scheduler, timestep)])
    if scheduler.config.use_flow_sigmas:
        return NoiseLevel(1 - ratio, ratio)
    alpha = 1 / math.sqrt(1 + ratio**2)
    return NoiseLevel(alpha, ratio * alpha)


_LEVELS: dict[str, Callable[[Any, float | Tensor], NoiseLevel]] = {
    "DDIMScheduler": _variance_preserving,
    "EulerDiscreteScheduler": _variance_exploding,
    "DPMSolverMultistepScheduler": _dpm_solver,
}


def level_resolver(scheduler: Any) -> Callable[[Any, float | Tensor], NoiseLevel]:
    """The row of the table for a scheduler's class or the nearest of its base classes.

    Raises:
        UnsupportedSchedulerError: The scheduler belongs to no known family.
    """
    for cls in type(scheduler).__mro__:
        if cls.__name__ in _LEVELS:
            return _LEVELS[cls.__name__]
    raise UnsupportedSchedulerError(
        f"guidance knows the noise levels of {', '.join(_LEVELS)}; the pipeline's scheduler is a "
        f"{type(scheduler).__name__}. Exchange it before attaching, for example with "
        "`pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`"
    )


def noise_level(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    """Noise level of the sample that ``scheduler.step(model_output, timestep, sample)`` is about to receive.

    Args:
        scheduler: A diffusers scheduler after ``set_timesteps``; a subclass of a known class is known too.
        timestep: The timestep of the step, as the pipeline passes it.

    Returns:
        alpha in [0, 1] and sigma >= 0.

    Raises:
        UnsupportedSchedulerError: The scheduler belongs to no known family.
    """
    return level_resolver(scheduler)(scheduler, timestep)
