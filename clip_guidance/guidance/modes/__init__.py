"""Guidance modes: how a reward becomes a shift Δ of the predicted clean sample.

Each has a file. A mode with a name is a row of :data:`clip_guidance.guidance.modes.named.MODES`;
:mod:`clip_guidance.guidance.methods` holds modes with parameters, after published methods.
"""

from clip_guidance.guidance.modes.base import Mode as Mode
from clip_guidance.guidance.modes.base import RewardGradient as RewardGradient
from clip_guidance.guidance.modes.base import StepState as StepState
from clip_guidance.guidance.modes.named import find_mode as find_mode

__all__ = ["Mode", "RewardGradient", "StepState", "find_mode"]
