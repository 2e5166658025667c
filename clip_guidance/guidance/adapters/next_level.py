"""The noise level at which a step ends, of the schedulers whose steps are DDIM's."""

from typing import Any

from clip_guidance.guidance.adapters.by_class import by_class
from clip_guidance.guidance.adapters.noise_level import NoiseLevel, UnsupportedSchedulerError, from_product

_KNOWN = ("DDIMScheduler", "DDPMScheduler")


def check_ddim(scheduler: Any, what: str) -> None:
    """Refuse a scheduler that takes no steps of DDIM.

    Args:
        scheduler: A diffusers scheduler.
        what: Name of what needs such steps, for the error message.

    Raises:
        UnsupportedSchedulerError: The scheduler is neither a ``DDIMScheduler`` nor a ``DDPMScheduler``.
    """
    if by_class(_KNOWN, scheduler) is None:
        raise UnsupportedSchedulerError(
            f"{what} is defined by its paper on the steps of {' or '.join(_KNOWN)}; the pipeline's scheduler is a "
            f"{type(scheduler).__name__}. Exchange it with `DDIMScheduler.from_config(pipe.scheduler.config)`"
        )


def is_ddpm(scheduler: Any) -> bool:
    """Return whether the scheduler is a ``DDPMScheduler``, whose η is always 1."""
    return by_class({"DDPMScheduler"}, scheduler) is not None


def next_noise_level(scheduler: Any, level: NoiseLevel) -> NoiseLevel:
    """Return the noise level at which the step from ``level`` ends.

    Args:
        scheduler: A ``DDIMScheduler`` or ``DDPMScheduler`` after ``set_timesteps``.
        level: The noise level before the step, with its timestep.

    Raises:
        UnsupportedSchedulerError: The scheduler takes no steps of DDIM.
        ValueError: ``level`` does not know its timestep.
    """
    check_ddim(scheduler, "the noise level after a step")
    timestep = level.timestep
    if timestep is None:
        raise ValueError("expected a noise level that knows its timestep, as noise_level() returns it for DDIM")
    if hasattr(scheduler, "previous_timestep"):
        following = int(scheduler.previous_timestep(timestep))
    else:
        following = int(timestep) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    alpha_prod = float(scheduler.alphas_cumprod[following] if following >= 0 else final_alpha_prod(scheduler))
    return from_product(alpha_prod, following)


def final_alpha_prod(scheduler: Any) -> float:
    """Return the ᾱ at which a run ends; DDPM's is 1."""
    return float(getattr(scheduler, "final_alpha_cumprod", 1.0))
