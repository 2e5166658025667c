"""Published guidance methods as presets of the same parts, to be compared fairly.

Each is a small frozen dataclass in a file of its own, with its paper's parameters, that ``Guidance(mode=...)`` takes:

    with CLIPGuidance(clip, "a red apple", mode=FreeDoM(rho=0.2)).attach(pipe):
        pipe("an apple", eta=1.0)

The papers write their updates for DDIM, and most add to x_{t−1}; :mod:`.ddim` says how that is a shift of x̂₀. η is the
pipeline's own argument; most papers use 1. A ``scale`` of 1 is the paper's update. :func:`recurrent` adds the time
travel that some of them use. :class:`Tilt` is our own: mode "x0" in several steps.
"""

from clip_guidance.guidance.methods.dps import DPS as DPS
from clip_guidance.guidance.methods.freedom import FreeDoM as FreeDoM
from clip_guidance.guidance.methods.lgd_mc import LGDMC as LGDMC
from clip_guidance.guidance.methods.mpgd import MPGD as MPGD
from clip_guidance.guidance.methods.recurrence import recurrent as recurrent
from clip_guidance.guidance.methods.tfg import TFG as TFG
from clip_guidance.guidance.methods.universal import UniversalGuidance as UniversalGuidance
from clip_guidance.guidance.modes.tilt import Tilt as Tilt

METHODS = (DPS, LGDMC, FreeDoM, MPGD, UniversalGuidance, TFG, Tilt)
__all__ = ["DPS", "LGDMC", "FreeDoM", "MPGD", "UniversalGuidance", "TFG", "Tilt", "METHODS", "recurrent"]
