"""Guidance: which reward steers, how strongly and when.

A reward r tilts the model's distribution to p(x₀)·exp(scale·r(x₀)). At each guided step a mode turns the
reward's gradient into a shift of the predicted clean sample (:mod:`clip_guidance.guidance.modes`), which is
written into the model output just before ``scheduler.step`` (:mod:`clip_guidance.guidance.attach`). ``scale``
means the same tilt whatever the scheduler, the number of steps and the batch.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from clip_guidance.guidance.attach import attach
from clip_guidance.guidance.cutouts import Cutouts
from clip_guidance.guidance.modes import MODES
from clip_guidance.guidance.rewards import CLIPReward

if TYPE_CHECKING:
    from clip_guidance.clip import CLIP

Reward = Callable[[Tensor], Tensor]
SPACES = ("image", "latent")


@dataclass
class GuidanceReport:
    """What guidance did in the latest run of the pipeline.

    Attributes:
        steps: Index of every step at which the gradient was taken.
        rewards: At each of these, the rewards (B,) of the predicted clean samples before the shift.
        dropped: Number of samples' shifts that were left out because they were not finite.
    """

    steps: list[int] = field(default_factory=list)
    rewards: list[Tensor] = field(default_factory=list)
    dropped: int = 0


@dataclass(eq=False)
class Guidance:
    """Steer a pipeline with any differentiable reward.

    Args:
        reward: Pictures (B, 3, H, W) in [0, 1], or latents, to one number a picture, (B,), to be raised.
        scale: Strength of the tilt: 1 multiplies the model's density by exp(reward), 0 changes nothing, and a
            negative scale lowers the reward.
        mode: "x0" (default, no backward through the denoiser) or "exact".
        start: Fraction of the steps before which guidance rests, in [0, 1).
        stop: Fraction of the steps from which on guidance rests, in (0, 1].
        every: Take the gradient at every n-th step; between them the latest one is used again with the weight
            of the step, so that the strength does not depend on it.
        space: What the reward reads of the predicted clean sample: "image", decoded, or "latent", as it is.
        data_variance: Variance of an element of the clean sample; None for the pipeline's default, 1 for
            latents and 1/4 for pixels in [-1, 1].

    Attributes:
        report: What happened in the latest run.

    Raises:
        TypeError: ``reward`` is not callable.
        ValueError: Another argument is out of range.
    """

    reward: Reward = field(repr=False)
    scale: float = 1.0
    mode: str = "x0"
    start: float = 0.0
    stop: float = 1.0
    every: int = 1
    space: str = "image"
    data_variance: float | None = None
    report: GuidanceReport = field(default_factory=GuidanceReport, init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.reward):
            raise TypeError(f"reward must be callable, got {type(self.reward).__name__}")
        if not math.isfinite(self.scale):
            raise ValueError(f"scale must be finite, got {self.scale}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(f"expected 0 <= start < stop <= 1, got start={self.start}, stop={self.stop}")
        if self.every != int(self.every) or self.every < 1:
            raise ValueError(f"every must be a whole number of steps, at least 1, got {self.every}")
        if self.space not in SPACES:
            raise ValueError(f"space must be one of {', '.join(SPACES)}, got {self.space!r}")
        if self.data_variance is not None and not 0 < self.data_variance < math.inf:
            raise ValueError(f"data_variance must be positive and finite, got {self.data_variance}")

    def attach(self, pipe: Any) -> AbstractContextManager["Guidance"]:
        """Guide ``pipe`` inside the ``with`` block, and leave it afterwards as it was.

        Args:
            pipe: A diffusers pipeline, or any object with a ``scheduler`` and a ``unet`` or ``transformer``.

        Returns:
            A context manager that yields this guidance. Several guidances attached at once add up.

        Raises:
            UnsupportedSchedulerError: The scheduler's noise levels are not known.
            ValueError: ``pipe`` has no scheduler or denoiser, or its latents cannot be decoded.
        """
        return attach(self, pipe)

    def start_run(self) -> None:
        """Called at the first step of every run of the pipeline."""
        self.report = GuidanceReport()


class CLIPGuidance(Guidance):
    """Steer a pipeline towards a prompt by CLIP's logit; see :class:`Guidance` for the other arguments.

    With ``scale=1`` the model's density is multiplied by the likelihood that CLIP gives to the prompt.

    Args:
        clip: The model.
        prompt: One prompt, or one for each of the pipeline's prompts.
        scale: Strength of the tilt.
        cutouts: Views of each picture to average over: the whole picture, and random crops beyond the first.
        seed: Seed of the crops; each run starts from it.
        mode: As in :class:`Guidance`.
        start: As in :class:`Guidance`.
        stop: As in :class:`Guidance`.
        every: As in :class:`Guidance`.
        space: As in :class:`Guidance`.
        data_variance: As in :class:`Guidance`.
    """

    reward: CLIPReward

    def __init__(
        self,
        clip: "CLIP",
        prompt: str | Sequence[str],
        scale: float = 1.0,
        *,
        cutouts: int = 1,
        seed: int = 0,
        mode: str = "x0",
        start: float = 0.0,
        stop: float = 1.0,
        every: int = 1,
        space: str = "image",
        data_variance: float | None = None,
    ) -> None:
        reward = CLIPReward(clip, prompt, Cutouts(cutouts, seed))
        super().__init__(reward, scale, mode, start, stop, every, space, data_variance)

    def start_run(self) -> None:
        """Also start the random crops over, so that equal runs give equal pictures."""
        super().start_run()
        self.reward.cutouts.reset()
