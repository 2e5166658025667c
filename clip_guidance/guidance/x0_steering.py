"""Guidance of samplers that are not diffusers': a predicted clean sample comes in, a better one goes out.

Any sampler predicts x̂₀ from x = αx₀ + σε at each of its steps, whatever its model predicts. One that lets x̂₀ be
replaced on the way, as ComfyUI's and k-diffusion's do, can be steered in mode "x0", which needs nothing else.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from clip_guidance._tensors import at_least_float32
from clip_guidance.guidance.adapters.adapter import Adapter
from clip_guidance.guidance.adapters.noise_level import NoiseLevel
from clip_guidance.guidance.adapters.prediction import SAMPLE, Prediction, always
from clip_guidance.guidance.adapters.schedulers import SchedulerAdapter
from clip_guidance.guidance.checks import as_number, as_whole, shown
from clip_guidance.guidance.engine.attachment import Attachment, Step
from clip_guidance.guidance.engine.cap import Corrections
from clip_guidance.guidance.engine.host import Host
from clip_guidance.guidance.engine.runs import Run, warn_of_dropped, warn_of_idle
from clip_guidance.guidance.engine.tape import DenoiserTape
from clip_guidance.guidance.options import GuidanceOptions
from clip_guidance.guidance.weights.freeze import freeze_parameters


class X0Steering:
    """Compute the shifts of one run of a sampler of any project; make another for the next run.

    The shifts are those of ``guidance.attach`` in mode "x0". Several guidances add up if each computes its shift from
    the x̂₀ before all of them.

    Args:
        guidance: The guidance, in mode "x0" and without a cap; its window, damping, ``every``, decoding and the other
            options act as in a pipeline. A run that begins restarts its report and its random crops.
        autoencoder: Decodes what the reward reads: ``decode(latents, return_dict=False)`` returns a tuple, of pixels
            (B, 3, H, W) in [-1, 1] first. With an ``encode`` alike, ``decoding="auto"`` can check a smaller decode.
            None for a guidance with ``to_image``, or on latents.
        denormalise: From the clean sample to what ``autoencoder`` reads; None where they are the same.

    Raises:
        ValueError: The guidance has another mode, a cap or a guider; or nothing makes the images that its reward reads.

    Example:
        >>> import torch
        >>> import clip_guidance as cg
        >>> from clip_guidance.guidance import X0Steering
        >>> nearer = cg.Guidance(lambda x: -0.5 * (x - 1).square().flatten(1).sum(1), space="latent")
        >>> steering = X0Steering(nearer)
        >>> steering.shift(torch.zeros(1, 4, 2, 2), alpha=1.0, sigma=1.0, step=0, steps=10).unique()  # w = 1/2
        tensor([0.5000])
    """

    def __init__(
        self,
        guidance: GuidanceOptions,
        autoencoder: nn.Module | None = None,
        denormalise: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if guidance.mode != "x0" or guidance.cap is not None or guidance.guider is not None:
            raise ValueError(
                "a sampler that hands out predicted clean samples alone is steered in mode 'x0', without cap and "
                f"guider; got mode={shown(guidance.mode)}, cap={guidance.cap}, guider={shown(guidance.guider)}"
            )
        if guidance.space == "image" and guidance.to_image is None and autoencoder is None:
            raise ValueError(
                "the reward reads images: give an autoencoder, or a guidance with to_image or space='latent'"
            )
        self._guidance = guidance
        self._attachment = Attachment(guidance, _host(autoencoder, denormalise))
        self._attachment.begin_run(Run(0, None, 0))

    def shift(self, x0: Tensor, alpha: float, sigma: float, *, step: int, steps: int) -> Tensor:
        """Compute what is to be added to the predicted clean samples; zero at a step that is not guided.

        Args:
            x0: The predicted clean samples after classifier-free guidance, (B, ...).
            alpha: Weight of the clean sample in the noisy one, in [0, 1].
            sigma: Weight of the noise, at least 0.
            step: Position of the step in the run, counted from 0; the stages of a second-order step share it.
            steps: Number of the run's steps.

        Returns:
            The shift with the scale in it, of the shape of ``x0``, in float32 or better and without a gradient.

        Raises:
            ValueError: A number is out of range, or the reward, the decoder or the scale refuses the samples.
        """
        steps = as_whole("steps", steps, "at least 1", 1)
        step = as_whole("step", step, f"in [0, {steps})", 0)
        level = NoiseLevel(as_number("alpha", alpha), as_number("sigma", sigma))
        if not (0 <= level.alpha <= 1 and 0 <= level.sigma < float("inf") and step < steps):
            raise ValueError(
                f"expected alpha in [0, 1], a finite sigma >= 0 and step < steps, got alpha={alpha:g}, "
                f"sigma={sigma:g}, step={step}, steps={steps}"
            )
        x0 = x0.detach()
        attachment = self._attachment
        acts = attachment.enter_step(step, step / steps) and self._guidance.any_scale
        if not acts or level.sigma == 0:
            return torch.zeros_like(at_least_float32(x0))
        nothing = Corrections(lambda: False)
        prediction = Prediction(x0, x0, level, SAMPLE)
        with freeze_parameters(attachment.networks):
            return attachment.shift(Step(prediction, 0.0, 0.0, step, None, DenoiserTape(lambda: False), nothing))

    def end(self) -> None:
        """End the run: warn of shifts that were left out, and where nothing was steered."""
        warn_of_dropped([self._attachment], stacklevel=2)
        if self._guidance.any_scale:
            warn_of_idle([self._attachment], stacklevel=2)


def _host(autoencoder: nn.Module | None, denormalise: Callable[[Tensor], Tensor] | None) -> Host:
    """Describe a pipeline that has a decoder and nothing else, whose model predicts the clean sample."""

    def denormalised(decoder: Any, latents: Tensor) -> Tensor:
        return latents if denormalise is None else denormalise(latents)

    def no_level(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
        raise RuntimeError("the caller of shift says what the noise level is, and no scheduler is asked")

    predicts = always(SAMPLE)
    return Host(
        pipe=SimpleNamespace(vae=autoencoder),
        scheduler=None,
        adapter=Adapter(denoiser="", decoder="vae", denormalise=denormalised),
        scheduler_adapter=SchedulerAdapter(no_level, predicts),
        prediction_type=predicts(None),
        denoisers=[],
    )
