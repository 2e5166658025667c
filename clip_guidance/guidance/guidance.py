"""Guidance: which reward steers, how strongly and when.

A reward r tilts the model's distribution to p(x₀)·exp(scale·r(x₀)). At each guided step a mode turns the
reward's gradient into a shift of the predicted clean sample (:mod:`clip_guidance.guidance.modes`), which is
written into the model output just before ``scheduler.step`` (:mod:`clip_guidance.guidance.engine.attach`). ``scale``
means the same tilt whatever the scheduler, the number of steps and the batch.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.guiders import BaseGuidance
from torch import Tensor

from clip_guidance.guidance.engine.attach import attach
from clip_guidance.guidance.engine.decoder import Decoding
from clip_guidance.guidance.guider import Guider
from clip_guidance.guidance.modes.base import Mode, find_mode

Reward = Callable[[Tensor], Tensor]
SPACES = ("image", "latent")


@dataclass
class GuidanceReport:
    """What guidance did in the latest run of the pipeline.

    Attributes:
        steps: Index of every step at which the gradient was taken.
        rewards: At each of these, the rewards (B,) of the predicted clean samples before the shift; where a method
            adds noise to them, of the first noisy copy.
        dropped: Number of samples' shifts that were left out because they were not finite.
        capped: Number of samples' shifts that were longer than the cap and were shortened.
    """

    steps: list[int] = field(default_factory=list)
    rewards: list[Tensor] = field(default_factory=list)
    dropped: int = 0
    capped: int = 0


@dataclass(eq=False)
class Guidance(Guider):
    """Steer a pipeline with any differentiable reward.

    Attach it to a pipeline, or make it the guider of a modular one, ``pipe.update_components(guider=guidance)``.

    Args:
        reward: Images (B, 3, H, W) in [0, 1], or latents, to one number an image, (B,), to be raised. One that
            has ``parts(images)``, an iterator of rewards that add up to it, is differentiated part by part; one
            that has ``reset()`` is told when a run begins.
        scale: Strength of the tilt: 1 multiplies the model's density by exp(reward), 0 changes nothing, and a
            negative scale lowers the reward. One number, or n numbers for a batch of a multiple of n images, in
            the order of the pipeline's prompts.
        mode: "x0" (default, no backward through the denoiser), "exact", or a published method with its parameters,
            one of :mod:`clip_guidance.guidance.methods`: ``DPS(zeta=0.5)``, ``LGDMC``, ``FreeDoM``, ``MPGD``,
            ``UniversalGuidance``, ``TFG``. A ``scale`` of 1 is then the paper's own update. Or ``Tilt(2)``, "x0" in
            two steps, or any other :class:`~clip_guidance.guidance.modes.base.Mode`.
        start: Fraction of the steps before which guidance rests, in [0, 1).
        stop: Fraction of the steps from which on guidance rests, in (0, 1].
        every: Take the gradient at every n-th step; between them the latest one is used again with the weight
            of the step, so that the strength does not depend on it.
        space: What the reward reads of the predicted clean sample: "image", decoded, or "latent", as it is.
        data_variance: Variance of an element of the clean sample; None for the pipeline's default, 1 for
            latents and 1/4 for pixels in [-1, 1].
        schedule: Fraction of the steps that are done, in [0, 1), to a factor of ``scale``; None for 1 throughout.
        cap: Longest shift, as a multiple of the correction that classifier-free guidance makes at that step to that
            image, both as root mean squares of the predicted clean sample; None for no cap. Needs a hook on the
            denoiser. Without classifier-free guidance the posterior's standard deviation takes its place.
        decoding: How the image for the reward is decoded, to save memory and time; None for the pipeline's
            decoder as it is.
        guider: As the guider of a modular pipeline: the guider that this one goes around, such as
            ``ClassifierFreeGuidance``, ``AdaptiveProjectedGuidance`` or ``PerturbedAttentionGuidance``; None for the
            conditional prediction alone.

    Attributes:
        report: What happened in the latest run.

    Raises:
        TypeError: ``reward`` or ``schedule`` is not callable, ``mode`` no mode, or ``guider`` no guider.
        ValueError: Another argument is out of range.
    """

    reward: Reward = field(repr=False)
    scale: float | Sequence[float] = 1.0
    mode: str | Mode = "x0"
    start: float = 0.0
    stop: float = 1.0
    every: int = 1
    space: str = "image"
    data_variance: float | None = None
    schedule: Callable[[float], float] | None = field(default=None, kw_only=True)
    cap: float | None = field(default=None, kw_only=True)
    decoding: Decoding | None = field(default=None, kw_only=True)
    guider: BaseGuidance | None = field(default=None, kw_only=True, repr=False)
    report: GuidanceReport = field(default_factory=GuidanceReport, init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.reward):
            raise TypeError(f"reward must be callable, got {type(self.reward).__name__}")
        if not self._scales or not all(math.isfinite(scale) for scale in self._scales):
            raise ValueError(f"scale must be finite, got {self.scale}")
        find_mode(self.mode)
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(f"expected 0 <= start < stop <= 1, got start={self.start}, stop={self.stop}")
        if self.every != int(self.every) or self.every < 1:
            raise ValueError(f"every must be a whole number of steps, at least 1, got {self.every}")
        if self.space not in SPACES:
            raise ValueError(f"space must be one of {', '.join(SPACES)}, got {self.space!r}")
        if self.data_variance is not None and not 0 < self.data_variance < math.inf:
            raise ValueError(f"data_variance must be positive and finite, got {self.data_variance}")
        if self.schedule is not None and not callable(self.schedule):
            raise TypeError(f"schedule must be callable, got {type(self.schedule).__name__}")
        if self.cap is not None and not 0 < self.cap < math.inf:
            raise ValueError(f"cap must be positive and finite, or None, got {self.cap}")
        if self.guider is not None and not isinstance(self.guider, BaseGuidance):
            raise TypeError(
                "guider must be a guider of diffusers, such as ClassifierFreeGuidance, or None, got "
                f"{type(self.guider).__name__}"
            )

    @property
    def _scales(self) -> list[float]:
        return [float(self.scale)] if isinstance(self.scale, int | float) else [float(each) for each in self.scale]

    @property
    def any_scale(self) -> bool:
        """Whether any image is steered at all."""
        return any(self._scales)

    def acts(self, fraction: float) -> bool:
        """Whether the step at this fraction of all is guided."""
        return self.start <= fraction < self.stop and (self.schedule is None or self.schedule(fraction) != 0)

    def strength(self, fraction: float, batch: int) -> Tensor:
        """Scales (B,) of the images at the step at this fraction of all.

        Raises:
            ValueError: There is not one scale for each image, or for each group of as many.
        """
        scales = self._scales
        if batch % len(scales):
            raise ValueError(
                f"{len(scales)} scales cannot be shared out evenly among a batch of {batch} images; give one, or "
                "as many as the pipeline is given prompts"
            )
        factor = 1.0 if self.schedule is None else float(self.schedule(fraction))
        return factor * torch.tensor(scales, dtype=torch.float64).repeat_interleave(batch // len(scales))

    def attach(self, pipe: Any) -> AbstractContextManager["Guidance"]:
        """Guide ``pipe`` inside the ``with`` block, and leave it afterwards as it was.

        Args:
            pipe: A diffusers pipeline, or any object with a ``scheduler`` and a ``unet`` or ``transformer``.

        Returns:
            A context manager that yields this guidance. Several guidances attached at once add up.

        Raises:
            UnsupportedSchedulerError: The scheduler's noise levels are not known, or the mode is not defined for it.
            ValueError: ``pipe`` has no scheduler or denoiser, or its latents cannot be decoded; or this guidance goes
                around a guider.
        """
        if self.guider is not None:
            raise ValueError(
                "attach() steers what the pipeline predicts by itself, and does not use guider="
                f"{type(self.guider).__name__}. Leave it out, or make this guidance the guider of a modular pipeline: "
                "`pipe.update_components(guider=guidance)`"
            )
        self.meet(pipe)
        return attach(self, pipe)

    def meet(self, pipe: Any) -> None:
        """Called before ``pipe`` is guided."""

    def start_run(self) -> None:
        """Called at the first step of every run of the pipeline."""
        self.report = GuidanceReport()
        getattr(self.reward, "reset", lambda: None)()
