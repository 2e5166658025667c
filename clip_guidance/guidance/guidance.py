"""Guidance: which reward steers, how strongly and when.

A reward r tilts the model's distribution to p(x₀)·exp(scale·r(x₀)). At each guided step a mode turns the
reward's gradient into a shift of the predicted clean sample (:mod:`clip_guidance.guidance.modes`), which is
written into the model output just before ``scheduler.step`` (:mod:`clip_guidance.guidance.engine.attach`). ``scale``
means the same tilt whatever the scheduler, the number of steps and the batch.
"""

from contextlib import AbstractContextManager
from typing import Any

from clip_guidance.guidance.engine.attach import attach
from clip_guidance.guidance.engine.attachment import Attachment
from clip_guidance.guidance.guider import Guider
from clip_guidance.guidance.options import GuidanceOptions


class Guidance(GuidanceOptions, Guider):
    """Steer a pipeline with any differentiable reward.

    Attach it to a pipeline, or make it the guider of a modular one, ``pipe.update_components(guider=guidance)``.

    Args:
        reward: Maps images (B, 3, H, W) in [0, 1], of one channel from a grey pipeline, or latents, to one number per
            image, (B,), to be raised. A reward that has ``parts(images)``, an iterator of rewards that add up to it,
            is differentiated part by part; one that has ``reset()`` is told when a run begins.
        scale: Strength of the tilt: 1 multiplies the model's density by exp(reward), 0 changes nothing, and a
            negative scale lowers the reward. One number, or n numbers for a batch of a multiple of n images, in
            the order of the pipeline's prompts. None for a strength that is calibrated in each run: no shift is longer
            than the correction that classifier-free guidance makes (``report.calibrated`` tells).
        mode: How the gradient becomes a shift: "x0" (default, no backward through the denoiser), "exact" (one backward
            through the denoiser per step), "noisy" (by a tower that reads the noisy sample) and "blend" (that tower,
            and "x0") where such a tower belongs to the CLIP, or a published method with its parameters, one of
            :mod:`clip_guidance.guidance.methods`: ``DPS(zeta=0.5)``, ``LGDMC``, ``FreeDoM``, ``MPGD``,
            ``UniversalGuidance``, ``TFG``; a ``scale`` of 1 is then the paper's own update. Or ``Tilt(2)``, "x0" in
            two steps, or any other :class:`~clip_guidance.guidance.modes.base.Mode`.
        start: Fraction of the run's steps before which guidance rests, in [0, 1).
        stop: Fraction of the run's steps from which on guidance rests, in (0, 1].
        every: Take the gradient at every n-th step; between them the latest one is used again with the weight
            of the step, so that the strength does not depend on it.
        space: What the reward reads of the predicted clean sample: "image", decoded, or "latent", as it is.
        data_variance: Variance of an element of the clean sample; None for the pipeline's default, 1 for
            latents and 1/4 for pixels in [-1, 1].
        schedule: Maps the fraction of the run's steps that are done, in [0, 1), to a factor of ``scale``; None for 1
            throughout.
        cap: Longest shift, as a multiple of the correction that classifier-free guidance makes at that step to that
            image, both as root mean squares of the predicted clean sample; None for no cap. Needs a hook on the
            denoiser. Without classifier-free guidance the posterior's standard deviation takes its place.
        damping: Curvature κ of the reward, at least 0: a shift is divided by 1 + 2·scale·κ·w, with the posterior
            variance w, as is exact for a reward −κ‖x₀ − a‖². Strong guidance then overshoots less at high noise. None
            for 0, which is exact for a linear reward.
        decoding: How the image for the reward is decoded, to save memory and time. "auto", the default, decodes no
            larger than the reward's CLIP reads, where that is checked to change its embeddings by little
            (``report.decoding`` tells); None for the whole image by the pipeline's decoder; a
            :class:`~clip_guidance.guidance.Decoding` for more.
        to_image: Maps the predicted clean sample (B, ...) to images (B, 3, H, W) in [0, 1], differentiably, for a
            pipeline whose images :class:`Guidance` cannot make by itself; it takes the place of ``decoding``. None for
            the pipeline's own decoder. For pixels in [-1, 1] it goes with ``data_variance=0.25``.
        guider: As the guider of a modular pipeline: the guider that this one goes around, such as
            ``ClassifierFreeGuidance``, ``AdaptiveProjectedGuidance`` or ``PerturbedAttentionGuidance``; None for the
            conditional prediction alone.

    Attributes:
        report: What happened in the latest run, a :class:`~clip_guidance.guidance.GuidanceReport`.

    Raises:
        TypeError: ``reward`` or ``schedule`` is not callable, ``mode`` is not a mode, or ``guider`` is not a guider.
        ValueError: Another argument is out of range.

    Example:
        >>> import clip_guidance as cg
        >>> pipe = cg.load_pipeline("emoji")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> def redness(images):
        ...     return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))
        >>> with cg.Guidance(redness, scale=100.0).attach(pipe) as guidance:
        ...     image = pipe("an apple", num_inference_steps=2, height=32, width=32).images[0]
        >>> guidance.report.steps
        [0, 1]
    """

    def attach(self, pipe: Any) -> AbstractContextManager["Guidance"]:
        """Guide ``pipe`` inside the ``with`` block, and leave it afterwards as it was.

        Args:
            pipe: A diffusers pipeline, or any object with a ``scheduler`` and a ``unet`` or ``transformer``.

        Returns:
            A context manager that yields this guidance. Several guidances attached at once add up.

        Raises:
            UnsupportedSchedulerError: The scheduler's noise levels are not known, or the mode is not defined for it.
            ValueError: ``pipe`` has no scheduler or denoiser, or its latents cannot be decoded; or this guidance goes
                around a guider.
        """
        self.check_alone()
        self.prepare(pipe)
        return attach(self, pipe)

    def attachment_to(self, pipe: Any) -> Attachment:
        """Make what steers ``pipe``; ``attach`` asks for it."""
        return Attachment(self, pipe)
