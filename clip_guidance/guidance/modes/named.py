"""The table of the modes that have a name, and the look-up."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from clip_guidance.guidance.modes import exact, x0
from clip_guidance.guidance.modes.base import Mode, StepState
from clip_guidance.guidance.modes.blend import Blend
from clip_guidance.guidance.modes.noisy import Noisy


@dataclass(frozen=True)
class Named:
    """Make a mode of a function that is defined at any scheduler."""

    shift: Callable[[StepState], Tensor]
    needs_tape: bool
    needs_correction: ClassVar[bool] = False

    def check(self, scheduler: Any) -> None:
        """Refuse nothing."""


MODES: dict[str, Mode] = {
    "x0": Named(x0.shift, needs_tape=False),
    "exact": Named(exact.shift, needs_tape=True),
    "noisy": Noisy(),
    "blend": Blend(),
}


def find_mode(mode: str | Mode) -> Mode:
    """Find a mode by its name; return a mode as it is.

    Raises:
        TypeError: ``mode`` is not a mode.
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
