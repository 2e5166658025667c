"""What a guidance mode is, and what it is given at a step."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from clip_guidance.guidance.adapters.next_level import next_noise_level
from clip_guidance.guidance.adapters.noise_level import NoiseLevel
from clip_guidance.guidance.adapters.prediction import Prediction


@dataclass(frozen=True)
class RewardGradient:
    """Hold the gradient of each sample's reward, with the rewards.

    Attributes:
        gradient: The gradient, of the shape of the clean sample, in float32 or better.
        rewards: The rewards (B,), detached.
    """

    gradient: Tensor
    rewards: Tensor


@dataclass(frozen=True)
class StepState:
    """Hold what a mode may read at one step, where the noisy sample is x = αx₀ + σε.

    Attributes:
        prediction: The model output after classifier-free guidance, and what it says about x₀.
        timestep: The timestep of the step.
        scheduler: The pipeline's scheduler.
        scale: The guidance's scale at this step for each image, (B,). The engine multiplies the mode's shift by it.
        data_variance: Variance s² of an element of the clean sample.
        reward_gradient: From clean samples (B, ...) to the reward's gradient there, with the rewards.
        vjp: From a cotangent (B, ...) to (∂x̂₀/∂x)ᵀ cotangent, by one backward through the denoiser; works only where
            the mode's ``needs_tape`` asks for it.
        eta: η that goes into the scheduler's step, where the scheduler takes one (DDIM).
        correction: Root mean square (B,) of x̂₀_cfg − x̂₀_uncond; None without classifier-free guidance, and where the
            mode's ``needs_correction`` does not ask for it.
        tell: Warns of what is done otherwise than was asked for; the engine says each text once.
        reward: The guidance's reward, for modes that take its gradient in a way of their own.
        note: Notes the rewards (B,) of the step in the report, where ``reward_gradient`` does not.
    """

    prediction: Prediction
    timestep: float | Tensor
    scheduler: Any
    scale: Tensor
    data_variance: float
    reward_gradient: Callable[[Tensor], RewardGradient]
    vjp: Callable[[Tensor], Tensor]
    eta: float = 0.0
    correction: Tensor | None = None
    tell: Callable[[str], None] = warnings.warn
    reward: Any = None
    note: Callable[[Tensor], None] = lambda rewards: None

    @property
    def sample(self) -> Tensor:
        """The noisy sample x, (B, ...)."""
        return self.prediction.sample

    @property
    def x0(self) -> Tensor:
        """The predicted clean sample x̂₀, (B, ...), detached and in float32 or better."""
        return self.prediction.x0

    @property
    def level(self) -> NoiseLevel:
        """The noise level (α, σ) of the sample."""
        return self.prediction.level

    @cached_property
    def next_level(self) -> NoiseLevel:
        """The noise level (α', σ') after the step, known for DDIM and DDPM.

        Raises:
            UnsupportedSchedulerError: The scheduler is another one.
        """
        return next_noise_level(self.scheduler, self.level)

    def gradient(self, x0: Tensor) -> Tensor:
        """Return the reward's gradient ∇r at clean samples, (B, ...).

        It costs a decode and a pass through the reward, forward and backward.
        """
        return self.reward_gradient(x0).gradient


@runtime_checkable
class Mode(Protocol):
    """Turn a reward into a shift; this is what ``Guidance(mode=...)`` takes beside a name.

    A mode is asked anew at every step, and keeps nothing.
    """

    @property
    def needs_tape(self) -> bool:
        """Whether the denoiser's forward must be recorded for ``StepState.vjp``."""

    @property
    def needs_correction(self) -> bool:
        """Whether the denoiser's outputs must be watched for ``StepState.correction``."""

    def check(self, scheduler: Any) -> None:
        """Refuse a scheduler with an UnsupportedSchedulerError, before anything is attached."""

    def shift(self, state: StepState) -> Tensor:
        """Return Δ for a scale of 1, of the shape of the sample, (B, ...)."""
