"""The guidance modes: how a reward becomes a shift Δ of the predicted clean sample. One file a mode."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from clip_guidance.guidance.modes import exact, x0
from clip_guidance.guidance.modes.tape import DenoiserTape
from clip_guidance.guidance.prediction import Prediction

RewardGradient = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Mode:
    """A row of the table of modes.

    Attributes:
        shift: (prediction, reward_gradient, data_variance, tape) -> Δ for a scale of 1, (B, ...).
        needs_tape: Whether the denoiser's forward must be recorded for this mode.
    """

    shift: Callable[[Prediction, RewardGradient, float, DenoiserTape], Tensor]
    needs_tape: bool


MODES = {
    "x0": Mode(x0.shift, needs_tape=False),
    "exact": Mode(exact.shift, needs_tape=True),
}
