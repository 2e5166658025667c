"""Options of a guidance, checked, and the report of its latest run: what the engine reads."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.guiders import BaseGuidance
from torch import Tensor

from clip_guidance.guidance.checks import Checked, as_number, as_numbers, as_whole, is_number, shown
from clip_guidance.guidance.decoding import AUTO, Decoding, DecodingChoice
from clip_guidance.guidance.modes import Mode, find_mode

Reward = Callable[[Tensor], Tensor]
SPACES = ("image", "latent")
_AT_ATTACH = ("mode", "space", "data_variance", "cap", "decoding", "to_image")  # the options that `attach` reads
_lock = threading.Lock()


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

    Example:
        >>> import clip_guidance as cg
        >>> guidance = cg.Guidance(lambda images: images.mean((1, 2, 3)))
        >>> guidance.report  # before the first run
        GuidanceReport(steps=[], rewards=[], dropped=0, capped=0, decoding=None)
    """

    steps: list[int] = field(default_factory=list)
    rewards: list[Tensor] = field(default_factory=list)
    dropped: int = 0
    capped: int = 0
    decoding: DecodingChoice | None = None


@dataclass(eq=False)
class GuidanceOptions(Checked):
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
    damping: float | None = field(default=None, kw_only=True)
    decoding: Decoding | str | None = field(default=AUTO, kw_only=True)
    to_image: Callable[[Tensor], Tensor] | None = field(default=None, kw_only=True, repr=False)
    guider: BaseGuidance | None = field(default=None, kw_only=True, repr=False)

    _attached = 0  # number of ``with`` blocks in which it is attached

    def __post_init__(self) -> None:
        self._report = GuidanceReport()
        self._check()
        self._is_checked = True

    def _check(self) -> None:
        if not callable(self.reward):
            has_score = callable(getattr(self.reward, "score", None))
            hint = ": as_steering(reward, prompts) makes one of an object with score" if has_score else ""
            raise TypeError(f"reward must be callable, got {type(self.reward).__name__}{hint}")
        scales = as_numbers("scale", self.scale)
        find_mode(self.mode[:40] if isinstance(self.mode, str) else self.mode)  # its name goes into the message
        start, stop = as_number("start", self.start), as_number("stop", self.stop)
        if not 0 <= start < stop <= 1:
            raise ValueError(f"expected 0 <= start < stop <= 1, got start={shown(start)}, stop={shown(stop)}")
        every = as_whole("every", self.every, "a whole number of steps, at least 1", 1)
        if not isinstance(self.space, str) or self.space not in SPACES:
            raise ValueError(f"space must be one of {', '.join(SPACES)}, got {shown(self.space)}")
        for name, none in (("data_variance", ""), ("cap", ", or None")):
            if (value := getattr(self, name)) is not None:
                vars(self)[name] = value = as_number(name, value)
                if not 0 < value < math.inf:
                    raise ValueError(f"{name} must be positive and finite{none}, got {shown(value)}")
        if self.damping is not None:
            vars(self)["damping"] = damping = as_number("damping", self.damping)
            if not 0 <= damping < math.inf:
                raise ValueError(f"damping must be at least 0 and finite, or None, got {shown(damping)}")
        for name in ("schedule", "to_image"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be callable, got {type(value).__name__}")
        if isinstance(self.decoding, str) and self.decoding != AUTO:
            raise ValueError(f"decoding must be 'auto', a Decoding, or None, got {shown(self.decoding)}")
        if not isinstance(self.decoding, Decoding | str | None):
            raise TypeError(f"decoding must be 'auto', a Decoding, or None, got {type(self.decoding).__name__}")
        if self.to_image is not None and (self.space != "image" or isinstance(self.decoding, Decoding)):
            raise ValueError(
                "to_image makes the images that the reward reads, in place of space='latent' and of a decoding; "
                "give one of the three"
            )
        self._check_regions()
        if self.guider is not None and not isinstance(self.guider, BaseGuidance):
            raise TypeError(
                "guider must be a guider of diffusers, such as ClassifierFreeGuidance, or None, got "
                f"{type(self.guider).__name__}"
            )
        # Of numpy's and torch's numbers Python's own are kept, which a config can hold.
        vars(self).update(scale=scales[0] if is_number(self.scale) else scales, start=start, stop=stop, every=every)

    def _check_regions(self) -> None:
        crops = isinstance(self.decoding, Decoding) and self.decoding.crop < 1
        if crops and getattr(self.reward, "has_regions", False):
            raise ValueError(
                "a region is a part of the whole image, of which decoding.crop below 1 decodes another window at each "
                "step; use resolution, checkpoint or images to save memory"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; an option acts from the next step on, or, if it is read by ``attach``, before that alone.

        Raises:
            AttributeError: The option cannot change while the guidance is attached.
        """
        if self._attached and (name in _AT_ATTACH or (name == "scale" and not self.any_scale)):
            raise AttributeError(f"{name} acts when the guidance is attached: set it outside of the `with` block")
        super().__setattr__(name, value)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep the options as they are that ``attach`` has read, inside the ``with`` block."""
        with _lock:
            self._attached += 1
        try:
            yield
        finally:
            with _lock:
                self._attached -= 1

    @property
    def report(self) -> GuidanceReport:
        """What happened in the latest run."""
        return self._report

    @property
    def _scales(self) -> list[float]:
        return [float(each) for each in as_numbers("scale", self.scale)]

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

    def is_active(self, fraction: float) -> bool:
        """Return whether the step at this fraction of the run's steps is guided."""
        return self.start <= fraction < self.stop and self._factor(fraction) != 0

    def strength(self, fraction: float, batch: int) -> Tensor:
        """Return the scales (B,) of the images at the step at this fraction of the run's steps.

        Raises:
            ValueError: There is not one scale for each image, or for each group of as many; or the schedule's factor
                is not finite.
        """
        scales = self._scales
        if batch % len(scales):
            raise ValueError(
                f"{len(scales)} scales cannot be shared out evenly among a batch of {batch} images; give one, or "
                "as many as the pipeline is given prompts"
            )
        each = torch.tensor(scales, dtype=torch.float64).repeat_interleave(batch // len(scales))
        return self._factor(fraction) * each

    def prepare(self, pipe: Any) -> None:
        """Prepare for guiding ``pipe``; a subclass may move its reward, nothing is done here."""

    def start_run(self) -> GuidanceReport:
        """Start the report and the reward over, at the first step of every run of the pipeline.

        Returns:
            The report of this run: by its end, ``self.report`` may be that of another thread's.
        """
        self._check_regions()  # the target of a reward may have been set since
        self._report = report = GuidanceReport()
        getattr(self.reward, "reset", lambda: None)()
        return report
