"""Options of a guidance, checked, and the report of its latest run: what the engine reads."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.guiders import BaseGuidance
from torch import Tensor

from clip_guidance.guidance.decoding import Decoding
from clip_guidance.guidance.modes import Mode, find_mode

Reward = Callable[[Tensor], Tensor]
SPACES = ("image", "latent")


@dataclass
class GuidanceReport:
    """Record what guidance did in the latest run of the pipeline.

    Attributes:
        steps: Index of every step at which the gradient was taken.
        rewards: At each of these steps, the rewards (B,) of the predicted clean samples before the shift; where a
            method adds noise to these samples, the rewards of the first noisy copy.
        dropped: Number of samples' shifts that were left out because they were not finite.
        capped: Number of samples' shifts that were longer than the cap and were shortened.

    Example:
        >>> import clip_guidance as cg
        >>> guidance = cg.Guidance(lambda images: images.mean((1, 2, 3)))
        >>> guidance.report  # before the first run
        GuidanceReport(steps=[], rewards=[], dropped=0, capped=0)
    """

    steps: list[int] = field(default_factory=list)
    rewards: list[Tensor] = field(default_factory=list)
    dropped: int = 0
    capped: int = 0


@dataclass(eq=False)
class GuidanceOptions:
    """Hold and check the options of a guidance.

    :class:`~clip_guidance.guidance.Guidance` documents each of them.
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

    def is_active(self, fraction: float) -> bool:
        """Return whether the step at this fraction of all steps is guided."""
        return self.start <= fraction < self.stop and (self.schedule is None or self.schedule(fraction) != 0)

    def strength(self, fraction: float, batch: int) -> Tensor:
        """Return the scales (B,) of the images at the step at this fraction of all steps.

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

    def prepare(self, pipe: Any) -> None:
        """Prepare for guiding ``pipe``; a subclass may move its reward, nothing is done here."""

    def start_run(self) -> GuidanceReport:
        """Start the report and the reward over, at the first step of every run of the pipeline.

        Returns:
            The report of this run: by its end, ``self.report`` may be that of another thread's.
        """
        self.report = report = GuidanceReport()
        getattr(self.reward, "reset", lambda: None)()
        return report
