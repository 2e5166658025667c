"""Mode "x0" in several steps: the tilt of the posterior mean followed along its strength.

Mode "x0" (:mod:`clip_guidance.guidance.modes.x0`) takes the whole shift scale·w·∇r at x̂₀, as if the gradient were the
same all the way. Where it is not, the shifted sample z(s) of a tilt by s solves

    dz/ds = w·∇r(z),    z(0) = x̂₀,

with the posterior variance w held, and n of Euler's steps go from 0 to the scale:

    Δ_{i+1} = Δ_i + (w/n)·∇r(x̂₀ + scale·Δ_i),    Δ_0 = 0.

n = 1 is mode "x0"; a linear reward gives the same for every n. The mean guidance of TFG (Ye et al. 2024,
arXiv:2409.15761, algorithm 1) takes such steps too, each of a size that is a parameter.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from clip_guidance._tensors import per_sample
from clip_guidance.guidance.arguments import check_count
from clip_guidance.guidance.modes.base import StepState
from clip_guidance.guidance.modes.x0 import posterior_variance


@dataclass(frozen=True)
class Tilt:
    """Take mode "x0" in several steps, as a mode.

    Each step costs a decode and a pass through the reward, forward and backward.

    Args:
        steps: Number n of Euler's steps, at least 1. 1 is mode "x0"; more follow a reward whose gradient changes along
            the way, and overshoot less.

    Raises:
        ValueError: ``steps`` is not a whole number from 1 to 10,000.

    Example:
        >>> from clip_guidance.guidance import Guidance
        >>> from clip_guidance.guidance.methods import Tilt
        >>> Guidance(lambda images: images.mean((1, 2, 3)), mode=Tilt(3)).mode
        Tilt(steps=3)
    """

    steps: int = 2
    needs_tape: ClassVar[bool] = False
    needs_correction: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_count("steps", self.steps)

    def check(self, scheduler: Any) -> None:
        """Refuse nothing: as mode "x0" it is defined at any scheduler."""

    def shift(self, state: StepState) -> Tensor:
        """Return Δ for a scale of 1, of the shape of the sample."""
        x0, scale = state.x0, per_sample(state.scale.to(state.x0), state.x0)
        weight = posterior_variance(state.level, state.data_variance) / self.steps
        shift = weight * state.gradient(x0)
        for _ in range(self.steps - 1):
            shift = shift + weight * state.gradient(x0 + scale * shift)
        return shift
