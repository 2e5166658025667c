"""Adaptive classifier-free guidance: the scale that a reward likes best, for each image and step.

Dynamic classifier-free guidance by online feedback (2025, arXiv:2509.16131) in any pipeline with any reward: of several
scales s, each step takes the one whose predicted clean sample is rated highest,

    s*  =  argmax over s of r(x̂₀(s)),    x̂₀(s) from u + s·(c − u),

with the predictions u without and c with the prompt, which the pipeline makes anyway. Nothing is differentiated.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from diffusers.guiders import BaseGuidance
from torch import Tensor

from clip_guidance.guidance.attachable import Attachable
from clip_guidance.guidance.checks import as_numbers
from clip_guidance.guidance.decoding import AUTO, Decoding
from clip_guidance.guidance.engine.attach import attach
from clip_guidance.guidance.engine.choice import ScaleChoice, ScaleReport
from clip_guidance.guidance.guider import Guider
from clip_guidance.rewards.protocol import Reward, as_judge


@dataclass(eq=False)
class AdaptiveCFG(Attachable, Guider):
    """Choose the classifier-free scale of each image and step by a reward, without gradients.

    Attach it to a pipeline, or make it the guider of a modular one, ``pipe.update_components(guider=adaptive)``. The
    denoiser runs as often as without it, and may be compiled, quantised or offloaded. A guidance that is attached too
    steers from the chosen scale's prediction, whichever was attached first.

    Args:
        reward: What ``as_judge`` takes: a function of images (B, 3, H, W) in [0, 1] or of a list of PIL images, to one
            number each, or an object with ``score(images, prompts)``, such as what ``load_reward`` returns. It rates
            against prompts of its own, if it has any, or else against those of the pipeline. It is asked once per scale
            and step, with the whole batch. With ``space="latent"`` it is a function of latents.
        scales: The scales s of u + s·(c − u) to choose from, finite numbers; default (3, 5, 7.5, 10). For most
            pipelines s is their ``guidance_scale`` or ``true_cfg_scale``; where they count from the conditional
            prediction (Z-Image, Ovis), it is that plus 1. Each costs a decode and a pass through the reward per step.
        start: Fraction of the run's steps before which the pipeline's own scale is used, in [0, 1).
        stop: Fraction of the run's steps from which on the pipeline's own scale is used, in (0, 1].
        space: What the reward reads of the predicted clean sample: "image", decoded, or "latent", as it is.
        decoding: How the image for the reward is decoded, to save memory and time: as for
            :class:`~clip_guidance.guidance.Guidance`.
        to_image: Maps the predicted clean sample (B, ...) to images (B, 3, H, W) in [0, 1], for a pipeline whose images
            are not known; it takes the place of ``decoding``. None for the pipeline's own decoder.
        guider: As the guider of a modular pipeline: the ``ClassifierFreeGuidance`` whose scale is the pipeline's own;
            None for one of scale 7.5.

    Attributes:
        report: What happened in the latest run, a :class:`~clip_guidance.guidance.ScaleReport`.

    Raises:
        TypeError: ``reward`` is none, or an argument is of another type.
        ValueError: There is no scale, or another argument is out of range.

    Of equal rewards, the scale wins that is nearest to the pipeline's own. A reward that is not finite never wins; an
    image without any finite one keeps the pipeline's own scale. No image's choice depends on its neighbours.

    Example:
        >>> import clip_guidance as cg
        >>> pipe = cg.load_pipeline("emoji")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> def redness(images):
        ...     return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))
        >>> with cg.AdaptiveCFG(redness, scales=(1.5, 3.0, 6.0)).attach(pipe) as adaptive:
        ...     image = pipe("an apple", num_inference_steps=2, height=32, width=32, guidance_scale=3.0).images[0]
        >>> [tuple(scales.shape) for scales in adaptive.chosen]  # a scale for each image, at each step
        [(1,), (1,)]
    """

    reward: Reward = field(repr=False)
    scales: Sequence[float] = (3.0, 5.0, 7.5, 10.0)
    start: float = 0.0
    stop: float = 1.0
    space: str = "image"
    decoding: Decoding | str | None = field(default=AUTO, kw_only=True)
    to_image: Callable[[Tensor], Tensor] | None = field(default=None, kw_only=True, repr=False)
    guider: BaseGuidance | None = field(default=None, kw_only=True, repr=False)

    _own_scale = 7.5  # as that of diffusers' ClassifierFreeGuidance

    def __post_init__(self) -> None:
        self._report = ScaleReport()
        self._check()
        self._is_checked = True

    def _check(self) -> None:
        super()._check()
        object.__setattr__(self, "scales", tuple(float(each) for each in as_numbers("scales", self.scales)))
        if self.space == "latent" and not callable(self.reward):
            raise TypeError(f"reward must be callable on latents, got {type(self.reward).__name__}")
        as_judge(self.reward, "any prompt")  # refuses what is no reward

    @property
    def report(self) -> ScaleReport:
        """What happened in the latest run."""
        return self._report

    @property
    def chosen(self) -> list[Tensor]:
        """The scales that were chosen in the latest run: at each step, one for each image, (B,)."""
        return self._report.chosen

    def attach(self, pipe: Any) -> AbstractContextManager["AdaptiveCFG"]:
        """Choose the scales of ``pipe`` inside the ``with`` block, and leave it afterwards as it was.

        Args:
            pipe: A diffusers pipeline, or any object with a ``scheduler`` and a ``unet`` or ``transformer``. It must be
                called with classifier-free guidance.

        Returns:
            A context manager that yields this object.

        Raises:
            UnsupportedSchedulerError: The scheduler's noise levels are not known.
            ValueError: ``pipe`` has no scheduler or denoiser, or its latents cannot be decoded; or this object goes
                around a guider.
        """
        self.check_alone()
        return attach(self, pipe)

    def attachment_to(self, pipe: Any) -> ScaleChoice:
        """Make what chooses the scales of ``pipe``; ``attach`` asks for it."""
        return ScaleChoice(self, pipe)

    def is_active(self, fraction: float) -> bool:
        """Return whether scales are chosen at this fraction of the run's steps."""
        return self.start <= fraction < self.stop

    def start_run(self) -> ScaleReport:
        """Start the report over, at the first step of every run of the pipeline."""
        self._report = report = ScaleReport()
        return report
