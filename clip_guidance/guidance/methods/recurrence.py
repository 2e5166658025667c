"""Recurrence, or time travel: a step is taken several times, noised again in between.

    x_t ← √α_t·x_{t−1} + √(1 − α_t)·n,    n ~ N(0, I),    α_t = ᾱ_t/ᾱ_{t−1}

(Bansal et al. 2023, arXiv:2302.07121, equation 10; FreeDoM, Yu et al. 2023, arXiv:2303.09833, algorithm 2; RePaint,
Lugmayr et al. 2022, arXiv:2201.09865). This is no shift of x̂₀. The scheduler is made to list a timestep several times,
so that any stock pipeline calls its denoiser again by itself, and all but the last step of it return the noisy sample.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from clip_guidance.guidance.adapters.next_level import check_ddim, next_noise_level
from clip_guidance.guidance.adapters.schedulers import noise_level
from clip_guidance.guidance.arguments import check_count, check_number, check_seed, shown
from clip_guidance.guidance.engine.patch import patched
from clip_guidance.guidance.methods.ddim import DDIMStep


@contextmanager
def recurrent(scheduler: Any, times: int, window: tuple[float, float] = (0.0, 1.0), seed: int = 0) -> Iterator[None]:
    """Take each step of ``scheduler`` in a window ``times`` times inside the ``with`` block.

    Works with guidance attached inside or outside of it, whose ``start`` and ``stop`` count a repeated step once.

    Args:
        scheduler: A ``DDIMScheduler`` or ``DDPMScheduler``. The pipeline must run through all of its timesteps.
        times: How often each step is taken; 1 changes nothing.
        window: Fractions (start, stop) of the steps that are repeated, start included.
        seed: Seed of the noise that is put back, which comes from a generator of its own; each run starts from it.

    Raises:
        UnsupportedSchedulerError: The scheduler takes no steps of DDIM.
        TypeError: ``window`` is not two numbers.
        ValueError: ``times`` is not a positive whole number, ``window`` not a part of a run, or ``seed`` not a whole
            number of less than 43 bits.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> from clip_guidance.guidance.methods import recurrent
        >>> scheduler = DDIMScheduler()
        >>> with recurrent(scheduler, 2, window=(0.0, 0.5)):
        ...     scheduler.set_timesteps(4)
        ...     scheduler.timesteps.tolist()
        [750, 750, 500, 500, 250, 0]
    """
    check_ddim(scheduler, "recurrence")
    check_count("times", times)
    check_seed(seed)
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise TypeError(f"window must be two fractions of a run, got {shown(window)}")
    for fraction in window:
        check_number("a fraction of window", fraction)
    if not 0 <= window[0] < window[1] <= 1:
        raise ValueError(f"expected a window 0 <= start < stop <= 1, got {shown(window)}")
    recurrence = _Recurrence(scheduler, times, (window[0], window[1]), seed)
    with ExitStack() as stack:
        stack.enter_context(patched(scheduler, "set_timesteps", recurrence.set_timesteps))
        stack.enter_context(patched(scheduler, "step", recurrence.step))
        if hasattr(scheduler, "previous_timestep"):  # DDPM looks it up in the list
            stack.enter_context(patched(scheduler, "previous_timestep", recurrence.previous_timestep))
        try:
            yield
        finally:
            recurrence.end()


def repetition(scheduler: Any, timestep: int) -> int:
    """Return how often the step at ``timestep`` was taken before in this run; 0 outside of :func:`recurrent`."""
    index = getattr(scheduler, "step_index", None) or 0
    return int((scheduler.timesteps[:index] == timestep).sum())


class _Recurrence:
    """Wrap a scheduler's own methods: each is given the original and its arguments."""

    def __init__(self, scheduler: Any, times: int, window: tuple[float, float], seed: int) -> None:
        self._scheduler, self._times, self._window, self._seed = scheduler, times, window, seed
        self._generator = torch.Generator()
        self._timesteps: Tensor | None = None  # each of them once

    def set_timesteps(self, original: Callable, *args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        self._timesteps = timesteps = self._scheduler.timesteps
        (start, stop), count = self._window, len(timesteps)
        repeats = torch.tensor([self._times if start <= i / count < stop else 1 for i in range(count)])
        if self._times > 1 and not (repeats > 1).any():
            warnings.warn(
                f"recurrence repeats no step: none of the {count} lies in the window {start:g} to {stop:g} of the run. "
                "Widen it, or take more steps",
                stacklevel=2,
            )
        self._scheduler.timesteps = timesteps.repeat_interleave(repeats.to(timesteps.device))
        # DDIM and DDPM keep no index, and from a timestep guidance cannot tell which repetition it is at.
        self._scheduler.step_index = 0
        self._scheduler.fractions_done = [i / count for i, times in enumerate(repeats.tolist()) for _ in range(times)]
        self._generator.manual_seed(self._seed)

    def step(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        timestep, sample = given["timestep"], given["sample"]
        index, timesteps = getattr(self._scheduler, "step_index", None), self._scheduler.timesteps
        if index is None:
            raise RuntimeError("recurrence expected set_timesteps() to be called inside its `with` block before step()")
        expected = int(timesteps[index]) if index < len(timesteps) else None
        if int(timestep) != expected:
            raise RuntimeError(
                f"recurrence expected step {index} of {len(timesteps)} at timestep {expected}, got {int(timestep)}: "
                "the pipeline must run through all of scheduler.timesteps, from the first on"
            )
        output = original(*args, **kwargs)
        self._scheduler.step_index = index + 1
        if index + 1 == len(timesteps) or timesteps[index + 1] != timesteps[index]:
            return output
        if isinstance(output, tuple):
            return (self._noised(output[0], timestep, sample), *output[1:])
        output.prev_sample = self._noised(output.prev_sample, timestep, sample)
        return output

    def _noised(self, following: Tensor, timestep: int | Tensor, sample: Tensor) -> Tensor:
        level = noise_level(self._scheduler, timestep)
        alpha_t = DDIMStep(level, next_noise_level(self._scheduler, level), eta=1.0).alpha_t
        noise = torch.randn(sample.shape, generator=self._generator).to(following)
        return math.sqrt(alpha_t) * following + math.sqrt(1 - alpha_t) * noise

    def previous_timestep(self, original: Callable, timestep: int | Tensor) -> Tensor:
        timesteps = self._timesteps if self._timesteps is not None else self._scheduler.timesteps
        following = timesteps[int((timesteps == timestep).nonzero()[0]) + 1 :]
        return following[0] if len(following) else torch.tensor(-1)

    def end(self) -> None:
        """Put the timesteps back, each of them once."""
        if self._timesteps is not None:
            self._scheduler.timesteps = self._timesteps
        for name in ("step_index", "fractions_done"):
            vars(self._scheduler).pop(name, None)
