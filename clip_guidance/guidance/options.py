"""Options of a guidance, checked, and the report of its latest run: what the engine reads."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from diffusers.guiders import BaseGuidance
from torch import Tensor

from clip_guidance._tuned import GuidanceDefaults
from clip_guidance.guidance.attachable import Attachable
from clip_guidance.guidance.checks import as_number, as_numbers, as_whole, is_number, shown
from clip_guidance.guidance.decoding import AUTO, Decoding, DecodingChoice
from clip_guidance.guidance.modes import Mode, find_mode

Reward = Callable[[Tensor], Tensor]
_PLAIN = GuidanceDefaults()


@dataclass
class GuidanceReport:
    """Record what guidance did in the latest run of the pipeline.

    Attributes:
        steps: Index of every step at which the gradient was taken.
        rewards: At each of these steps, the rewards (B,) of the predicted clean samples before the shift; where a
            method adds noise to these samples, the rewards of the first noisy copy.
        dropped: Number of samples' shifts that were left out because they were not finite.
        capped: Number of samples' shifts that were longer than the cap and were shortened.
        decoding: What ``decoding="auto"`` chose; None where it did not have to, or before the first guided step.
        calibrated: The strengths (B,) that ``scale=None`` came to by the latest step; None where a scale is given, or
            known for the pipeline and the CLIP.

    Example:
        >>> import clip_guidance as cg
        >>> guidance = cg.Guidance(lambda images: images.mean((1, 2, 3)))
        >>> guidance.report  # before the first run
        GuidanceReport(steps=[], rewards=[], dropped=0, capped=0, decoding=None, calibrated=None)
    """

    steps: list[int] = field(default_factory=list)
    rewards: list[Tensor] = field(default_factory=list)
    dropped: int = 0
    capped: int = 0
    decoding: DecodingChoice | None = None
    calibrated: Tensor | None = None


@dataclass(eq=False)
class GuidanceOptions(Attachable):
    """Hold and check the options of a guidance.

    :class:`~clip_guidance.guidance.Guidance` documents each of them.
    """

    reward: Reward = field(repr=False)
    scale: float | Sequence[float] | None = 1.0
    mode: str | Mode | None = "x0"
    start: float | None = 0.0
    stop: float | None = 1.0
    every: int = 1
    space: str = "image"
    data_variance: float | None = None
    schedule: Callable[[float], float] | None = field(default=None, kw_only=True)
    cap: float | None = field(default=None, kw_only=True)
    damping: float | None = field(default=None, kw_only=True)
    decoding: Decoding | str | None = field(default=AUTO, kw_only=True)
    to_image: Callable[[Tensor], Tensor] | None = field(default=None, kw_only=True, repr=False)
    guider: BaseGuidance | None = field(default=None, kw_only=True, repr=False)

    _at_attach: ClassVar = ("mode", "space", "data_variance", "cap", "decoding", "to_image")
    _left_open: ClassVar = ("start", "stop")

    def __post_init__(self) -> None:
        self._report = GuidanceReport()
        self._check()
        self._is_checked = True

    def _check(self) -> None:
        if not callable(self.reward):
            has_score = callable(getattr(self.reward, "score", None))
            hint = ": as_steering(reward, prompts) makes one of an object with score" if has_score else ""
            raise TypeError(f"reward must be callable, got {type(self.reward).__name__}{hint}")
        scales = None if self.scale is None else as_numbers("scale", self.scale)
        if self.mode is not None:
            find_mode(self.mode[:40] if isinstance(self.mode, str) else self.mode)  # its name goes into the message
        every = as_whole("every", self.every, "a whole number of steps, at least 1", 1)
        for name, none in (("data_variance", ""), ("cap", ", or None")):
            if (value := getattr(self, name)) is not None:
                vars(self)[name] = value = as_number(name, value)
                if not 0 < value < math.inf:
                    raise ValueError(f"{name} must be positive and finite{none}, got {shown(value)}")
        if self.damping is not None:
            vars(self)["damping"] = damping = as_number("damping", self.damping)
            if not 0 <= damping < math.inf:
                raise ValueError(f"damping must be at least 0 and finite, or None, got {shown(damping)}")
        if self.schedule is not None and not callable(self.schedule):
            raise TypeError(f"schedule must be callable, got {type(self.schedule).__name__}")
        super()._check()
        # Of numpy's and torch's numbers Python's own are kept, which a config can hold.
        vars(self).update(scale=scales[0] if scales and is_number(self.scale) else scales, every=every)

    def _is_read_at_attach(self, name: str) -> bool:
        return super()._is_read_at_attach(name) or (name == "scale" and (self.scale is None or not self.any_scale))

    def defaults_for(self, pipe: Any) -> GuidanceDefaults:
        """Return what stands on ``pipe`` for the options that are None; a subclass may know more of it."""
        return GuidanceDefaults() if self._is_tilt else GuidanceDefaults(scale=1.0)

    @property
    def _is_tilt(self) -> bool:
        """Whether the mode has a name, and no strength of its own as a published method has."""
        return self.mode is None or isinstance(self.mode, str)

    def window(self, defaults: GuidanceDefaults) -> tuple[float, float]:
        """Return between which fractions of a run guidance acts; that of the defaults where neither end is given."""
        if self.start is None and self.stop is None:
            return defaults.start, defaults.stop
        return self.start or 0.0, 1.0 if self.stop is None else self.stop

    @property
    def report(self) -> GuidanceReport:
        """What happened in the latest run."""
        return self._report

    @property
    def _scales(self) -> list[float]:
        return [1.0] if self.scale is None else [float(each) for each in as_numbers("scale", self.scale)]

    @property
    def any_scale(self) -> bool:
        """Whether any image is steered at all."""
        return any(self._scales)

    def _factor(self, fraction: float) -> float:
        """Return the schedule's factor of the scale at this fraction of the run.

        Raises:
            ValueError: It is not finite.
        """
        factor = 1.0 if self.schedule is None else as_number("the schedule", self.schedule(fraction))
        if not math.isfinite(factor):
            raise ValueError(f"the schedule must return a finite number, got {factor} at fraction {fraction:g}")
        return float(factor)

    def is_active(self, fraction: float, defaults: GuidanceDefaults = _PLAIN) -> bool:
        """Return whether the step at this fraction of the run's steps is guided."""
        start, stop = self.window(defaults)
        return start <= fraction < stop and self._factor(fraction) != 0

    def strength(self, fraction: float, batch: int, defaults: GuidanceDefaults = _PLAIN) -> Tensor:
        """Return the scales (B,) of the images at the step at this fraction of the run's steps.

        A calibrated strength, which is none of the guidance's own, is yet to be multiplied to them.

        Raises:
            ValueError: There is not one scale for each image, or for each group of as many; or the schedule's factor
                is not finite.
        """
        own = 1.0 if defaults.scale is None else defaults.scale
        scales = [own] if self.scale is None else self._scales
        if batch % len(scales):
            raise ValueError(
                f"{len(scales)} scales cannot be shared out evenly among a batch of {batch} images; give one, or "
                "as many as the pipeline is given prompts"
            )
        each = torch.tensor(scales, dtype=torch.float64).repeat_interleave(batch // len(scales))
        return self._factor(fraction) * each

    def start_run(self) -> GuidanceReport:
        """Start the report and the reward over, at the first step of every run of the pipeline.

        Returns:
            The report of this run: by its end, ``self.report`` may be that of another thread's.
        """
        self._check_regions()  # the target of a reward may have been set since
        self._report = report = GuidanceReport()
        getattr(self.reward, "reset", lambda: None)()
        return report
