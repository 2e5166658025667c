"""What a guidance mode is, and the table of those with a name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from clip_guidance.guidance.adapters.prediction import Prediction
from clip_guidance.guidance.engine.gradient import RewardGradient
from clip_guidance.guidance.engine.tape import DenoiserTape
from clip_guidance.guidance.modes import exact, x0

#: Clean samples (B, ...) -> the reward's gradient there, with the rewards.
GradientOf = Callable[[Tensor], RewardGradient]


@runtime_checkable
class Mode(Protocol):
    """What ``Guidance(mode=...)`` takes beside a name. It is asked anew at every step, and keeps nothing."""

    @property
    def needs_tape(self) -> bool:
        """Whether the denoiser's forward must be recorded for ``tape``."""

    @property
    def needs_correction(self) -> bool:
        """Whether the denoiser's outputs must be watched for ``prediction.correction``."""

    def check(self, scheduler: Any) -> None:
        """Called before anything is attached, to refuse a scheduler with an UnsupportedSchedulerError."""

    def shift(
        self, prediction: Prediction, reward_gradient: GradientOf, data_variance: float, tape: DenoiserTape
    ) -> Tensor:
        """Δ for a scale of 1, (B, ...)."""


@dataclass(frozen=True)
class Named:
    """A row of the table of modes, each defined at any scheduler; the attributes are :class:`Mode`'s."""

    shift: Callable[[Prediction, GradientOf, float, DenoiserTape], Tensor]
    needs_tape: bool
    needs_correction: ClassVar[bool] = False

    def check(self, scheduler: Any) -> None:
        """Nothing is refused."""


MODES: dict[str, Mode] = {
    "x0": Named(x0.shift, needs_tape=False),
    "exact": Named(exact.shift, needs_tape=True),
}


def find_mode(mode: "str | Mode") -> Mode:
    """A mode by its name, or the mode itself.

    Raises:
        TypeError: It is not a mode.
        ValueError: No mode has this name.
    """
    if isinstance(mode, str):
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, or a method such as FreeDoM(), got {mode!r}")
        return MODES[mode]
    if isinstance(mode, type):
        raise TypeError(f"mode must be an object, got the class {mode.__name__}: write mode={mode.__name__}()")
    if not isinstance(mode, Mode):
        raise TypeError(
            f"mode must be one of {', '.join(MODES)}, or an object with shift, check, needs_tape and needs_correction, "
            f"such as clip_guidance.guidance.methods.FreeDoM(); got {type(mode).__name__}"
        )
    return mode
