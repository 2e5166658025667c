"""The noise level at which a scheduler takes a step.

A noisy sample is x = α·x₀ + σ·ε. Schedulers keep α and σ in different forms, so they are resolved by family,
from the scheduler's own arrays, never guessed from the timestep:

- variance preserving (DDIM, Song et al. 2021, arXiv:2010.02502): α = √ᾱ_t, σ = √(1 − ᾱ_t);
- variance exploding (Karras et al. 2022, arXiv:2206.00364): α = 1, σ = ``sigmas[i]``;
- DPM-Solver (Lu et al. 2022, arXiv:2211.01095), with s = ``sigmas[i]``: α = 1/√(1 + s²), σ = s·α, or, with
  ``use_flow_sigmas``, α = 1 − s, σ = s;
- flow matching (Lipman et al. 2023, arXiv:2210.02747): α = 1 − σ, σ = ``sigmas[i]``;
- TrigFlow (Lu & Song 2025, arXiv:2410.11081): α = σ_d·cos t, σ = σ_d·sin t. The sample carries σ_d, x₀ does not.

A step of second order calls the model twice, and its second call sees a sample at a level of its own: Heun's at the
next sigma, PNDM's Runge-Kutta's at the timestep that is passed, KDPM2's and DPM-Solver SDE's at a sigma in between.
The noise that Euler's ``s_churn`` adds inside ``step``, after the model was asked, is not counted.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from clip_guidance.guidance.adapters.unsupported import UNSUPPORTED_SCHEDULERS

_ROUNDING = 1e-5  # SCM rounds π/2 up to 1.5708, whose cosine is negative; float32 rounds sigmas beyond 1


@dataclass(frozen=True)
class NoiseLevel:
    """The coefficients of x = alpha·x₀ + sigma·ε, where x is the ``sample`` that ``step`` receives.

    Attributes:
        alpha: In [0, 1].
        sigma: At least 0.
        timestep: That of the step, where the model output's weights depend on it (LCM).
    """

    alpha: float
    sigma: float
    timestep: float | None = field(default=None, compare=False)


class UnsupportedSchedulerError(ValueError):
    """The scheduler's noise levels or its prediction type are not known to clip_guidance."""


def step_index(scheduler: Any, timestep: float | Tensor) -> int:
    """Position of ``timestep`` in ``scheduler.timesteps``, as the scheduler's own ``step`` will count it.

    Before the first step ``scheduler.step_index`` is still None; then it is what the scheduler would set it to.
    Schedulers that keep no index (DDIM) are looked up by the nearest timestep. PNDM's timesteps repeat; there its
    counter tells them apart, so that the index grows from call to call.
    """
    for name in ("step_index", "begin_index"):
        if (index := getattr(scheduler, name, None)) is not None:
            return int(index)
    timesteps, timestep = scheduler.timesteps, _one_for_all(timestep)
    if hasattr(scheduler, "index_for_timestep"):
        timestep = timestep.to(timesteps.device) if isinstance(timestep, Tensor) else timestep
        return int(scheduler.index_for_timestep(timestep))
    distances = (timesteps.to("cpu", torch.float64) - float(timestep)).abs()
    nearest = (distances == distances.min()).nonzero().flatten().tolist()
    counter = getattr(scheduler, "counter", None)
    if counter is None:
        return nearest[0]
    if counter in nearest:
        return int(counter)
    # PNDM that began inside its timesteps (image to image) counts from there. The calls of a Runge-Kutta step take
    # turns at two equal timesteps; counter 0 goes before both, as counter 1 may be the first of the same two.
    if counter == 0:
        return nearest[0] - (len(nearest) - 1)
    return next((index for index in nearest if (index - counter) % 2 == 0), nearest[0])


def num_steps(scheduler: Any) -> int:
    """How many times a full run calls ``scheduler.step``, a call of each stage of a second-order step included."""
    for cls in type(scheduler).__mro__:
        if cls.__name__ in ("DDPMWuerstchenScheduler", "SCMScheduler"):
            return len(scheduler.timesteps) - 1  # the last of them is the clean end
        if cls.__name__ == "LTXEulerAncestralRFScheduler":
            return len(scheduler.sigmas) - 1  # with sigmas of one's own, the last timestep is the clean end too
    return len(scheduler.timesteps)


def fraction_done(scheduler: Any, index: int) -> float:
    """Fraction, in [0, 1), of a run that is done before the step at ``index``.

    A step that is taken again counts once (:mod:`clip_guidance.guidance.methods.recurrence` leaves word of it).
    """
    fractions = getattr(scheduler, "fractions_done", None)
    return index / num_steps(scheduler) if fractions is None else fractions[index]


def _one_for_all(timestep: float | Tensor) -> float | Tensor:
    """The one timestep of a batch of them."""
    if not isinstance(timestep, Tensor) or timestep.ndim == 0:
        return timestep
    if (timestep != timestep.flatten()[0]).any():
        raise UnsupportedSchedulerError(f"guidance needs one timestep for the whole batch, got {timestep.tolist()}")
    return timestep.flatten()[0]


def _variance_preserving(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    timestep = int(_one_for_all(timestep))
    alpha_prod = float(scheduler.alphas_cumprod[timestep])
    return NoiseLevel(math.sqrt(alpha_prod), math.sqrt(1 - alpha_prod), timestep)


def _wuerstchen(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    """Variance preserving too, but ᾱ is a function of a continuous timestep, which only ``add_noise`` publishes."""
    one, ratio = torch.ones(1), torch.tensor([float(_one_for_all(timestep))])
    alpha = float(scheduler.add_noise(one, torch.zeros(1), ratio))
    return NoiseLevel(alpha, math.sqrt(1 - alpha**2))


def _rotation(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    index = step_index(scheduler, timestep)
    return NoiseLevel(float(scheduler.alphas[index]), float(scheduler.betas[index]))


def _variance_exploding(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    return NoiseLevel(1.0, float(scheduler.sigmas[step_index(scheduler, timestep)]))


def _with_midpoint(midpoint: Callable[[Any, int], Tensor]) -> Callable[[Any, float | Tensor], NoiseLevel]:
    """Variance exploding; the second call of a step is at a sigma of its own."""

    def resolve(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
        if scheduler.state_in_first_order:
            return _variance_exploding(scheduler, timestep)
        return NoiseLevel(1.0, float(midpoint(scheduler, step_index(scheduler, timestep))))

    return resolve


def _dpm_solver(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    ratio = float(scheduler.sigmas[step_index(scheduler, timestep)])
    if scheduler.config.use_flow_sigmas:
        return NoiseLevel(1 - ratio, ratio)
    alpha = 1 / math.sqrt(1 + ratio**2)
    return NoiseLevel(alpha, ratio * alpha)


def _flow(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    sigma = float(scheduler.sigmas[step_index(scheduler, timestep)])
    if getattr(scheduler.config, "invert_sigmas", False):  # Mochi: sigmas rise from 0 at pure noise to 1
        return NoiseLevel(sigma, 1 - sigma)
    return NoiseLevel(1 - sigma, sigma)


def _trigflow(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    angle = float(scheduler.timesteps[step_index(scheduler, timestep)])
    sigma_data = scheduler.config.sigma_data
    return NoiseLevel(sigma_data * math.cos(angle), sigma_data * math.sin(angle))


#: Class name -> its noise level before a step.
LEVELS: dict[str, Callable[[Any, float | Tensor], NoiseLevel]] = {
    "DDIMScheduler": _variance_preserving,
    "DDIMParallelScheduler": _variance_preserving,
    "DDPMScheduler": _variance_preserving,
    "DDPMParallelScheduler": _variance_preserving,
    "PNDMScheduler": _variance_preserving,
    "LCMScheduler": _variance_preserving,
    "TCDScheduler": _variance_preserving,
    "UnCLIPScheduler": _variance_preserving,
    "CogVideoXDDIMScheduler": _variance_preserving,
    "CogVideoXDPMScheduler": _variance_preserving,
    "DDPMWuerstchenScheduler": _wuerstchen,
    "IPNDMScheduler": _rotation,
    "EulerDiscreteScheduler": _variance_exploding,
    "EulerAncestralDiscreteScheduler": _variance_exploding,
    "HeunDiscreteScheduler": _variance_exploding,
    "LMSDiscreteScheduler": _variance_exploding,
    "EDMEulerScheduler": _variance_exploding,
    "EDMDPMSolverMultistepScheduler": _variance_exploding,
    "CosineDPMSolverMultistepScheduler": _variance_exploding,
    "CMStochasticIterativeScheduler": _variance_exploding,
    "KDPM2DiscreteScheduler": _with_midpoint(lambda scheduler, index: scheduler.sigmas_interpol[index]),
    "KDPM2AncestralDiscreteScheduler": _with_midpoint(lambda scheduler, index: scheduler.sigmas_interpol[index - 1]),
    "DPMSolverSDEScheduler": _with_midpoint(lambda scheduler, index: scheduler.mid_point_sigma),
    "DPMSolverMultistepScheduler": _dpm_solver,
    "DPMSolverSinglestepScheduler": _dpm_solver,
    "UniPCMultistepScheduler": _dpm_solver,
    "DEISMultistepScheduler": _dpm_solver,
    "SASolverScheduler": _dpm_solver,
    "FlowMatchEulerDiscreteScheduler": _flow,
    "FlowMatchHeunDiscreteScheduler": _flow,
    "FlowMatchLCMScheduler": _flow,
    "LTXEulerAncestralRFScheduler": _flow,
    "MiniMaxH3Scheduler": _flow,
    "SCMScheduler": _trigflow,
}


def level_resolver(scheduler: Any) -> Callable[[Any, float | Tensor], NoiseLevel]:
    """The row of the table for a scheduler's class or the nearest of its base classes.

    Raises:
        UnsupportedSchedulerError: The scheduler belongs to no known family, or to one that cannot be guided.
    """
    advice = (
        "Exchange it before attaching, for example with "
        "`pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`"
    )
    for cls in type(scheduler).__mro__:
        if cls.__name__ in LEVELS:
            return LEVELS[cls.__name__]
        if cls.__name__ in UNSUPPORTED_SCHEDULERS:
            reason = UNSUPPORTED_SCHEDULERS[cls.__name__]
            raise UnsupportedSchedulerError(f"{cls.__name__} cannot be guided: {reason}. {advice}")
    raise UnsupportedSchedulerError(
        f"guidance knows the noise levels of {', '.join(LEVELS)}; the pipeline's scheduler is a "
        f"{type(scheduler).__name__}. {advice}"
    )


def noise_level(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    """Noise level of the sample that ``scheduler.step(model_output, timestep, sample)`` is about to receive.

    Args:
        scheduler: A diffusers scheduler after ``set_timesteps``; a subclass of a known class is known too.
        timestep: The timestep of the step, as the pipeline passes it.

    Returns:
        alpha in [0, 1] and sigma >= 0.

    Raises:
        UnsupportedSchedulerError: The scheduler belongs to no known family, or its arrays hold no such level, as
            those of sigmas that were spaced for another family.
    """
    level = level_resolver(scheduler)(scheduler, timestep)
    alpha, sigma = min(max(level.alpha, 0.0), 1.0), max(level.sigma, 0.0)
    if not (abs(alpha - level.alpha) <= _ROUNDING and sigma - level.sigma <= _ROUNDING and sigma < math.inf):
        raise UnsupportedSchedulerError(
            f"guidance expected alpha in [0, 1] and a finite sigma >= 0, {type(scheduler).__name__} is at "
            f"alpha={level.alpha:g}, sigma={level.sigma:g} at timestep {float(_one_for_all(timestep)):g}: are its "
            "sigmas spaced for the kind of model that it is configured for?"
        )
    return replace(level, alpha=alpha, sigma=sigma)
