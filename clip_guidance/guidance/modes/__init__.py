"""The guidance modes: how a reward becomes a shift Δ of the predicted clean sample. One file a mode.

:mod:`clip_guidance.guidance.methods` holds modes with parameters, after published methods.
"""

from clip_guidance.guidance.modes.base import Mode as Mode
from clip_guidance.guidance.modes.base import find_mode as find_mode

__all__ = ["Mode", "find_mode"]
