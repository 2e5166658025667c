"""One step of a pipeline, steered: shifts are written into its model output.

All attached guidances add theirs, just before ``scheduler.step``, whether a stock pipeline reaches it (:mod:`.attach`)
or a guider of a modular one (:mod:`clip_guidance.guidance.guider`). The sample is never touched, so that multistep
solvers keep a consistent history.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from clip_guidance.guidance.adapters.call_stack import PipelineCall, current_call
from clip_guidance.guidance.adapters.noise_level import step_index
from clip_guidance.guidance.adapters.prediction import Prediction
from clip_guidance.guidance.adapters.schedulers import fraction_done
from clip_guidance.guidance.engine.attachment import Attachment, Step
from clip_guidance.guidance.engine.cap import Corrections
from clip_guidance.guidance.engine.tape import DenoiserTape
from clip_guidance.guidance.weights.freeze import freeze_parameters


class Steering:
    """Wrap ``scheduler.step`` of one scheduler for all guidances that are attached to it.

    Attributes:
        attachments: The guidances.
        wrapping: Takes the wrapper off when it is closed.
        users: Number of those who need the wrapper.
    """

    def __init__(self, scheduler: Any) -> None:
        self.attachments: list[Attachment] = []
        self.wrapping = ExitStack()
        self.users = 0
        self._scheduler = scheduler
        self._tape = DenoiserTape(self._is_watched)
        self._corrections = Corrections(self._is_watched)

    def _is_watched(self) -> bool:
        call = current_call()
        return any(attachment.applies_to(call) for attachment in self.attachments)

    @contextmanager
    def watching(self, attachment: Attachment) -> Iterator[None]:
        """Let ``attachment`` steer inside the block.

        The denoiser has hooks only if the mode or a cap needs them.
        """
        with ExitStack() as stack:
            self.attachments.append(attachment)
            stack.callback(self.attachments.remove, attachment)
            stack.enter_context(freeze_parameters(attachment.networks))
            if attachment.recorded:
                stack.enter_context(self._tape.watch(attachment.recorded))
            if attachment.needs_correction:
                stack.enter_context(self._corrections.watch(attachment.host.denoisers))
            yield

    def __call__(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Take the scheduler's ``step`` with a model output into which every shift is written."""
        call = inspect.signature(step).bind(*args, **kwargs)
        given = call.arguments
        eta = float(given.get("eta") or 0.0)
        try:
            given["model_output"] = self._steered(given["model_output"], given["timestep"], given["sample"], eta)
        finally:
            self._tape.clear()
            self._corrections.clear()
        return step(*call.args, **call.kwargs)

    def _steered(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, eta: float) -> Tensor:
        call = current_call()
        own = [attachment for attachment in self.attachments if attachment.applies_to(call)]
        if not own:
            return model_output  # another pipeline shares the scheduler
        is_recorded, host = bool(self._tape.inputs), own[0].host
        unguided = model_output.detach() if is_recorded else model_output
        index = step_index(self._scheduler, timestep)
        done = fraction_done(self._scheduler, index)
        active = [attachment for attachment in own if attachment.begin_step(index, done)]
        level, kind = host.noise_level(timestep), host.prediction_type
        if not active or level.sigma == 0:
            return unguided
        copies = 2 if any(each.host.adapter.doubled for each in active) and _is_doubled(sample) else 1
        batch = len(sample) // copies
        with torch.set_grad_enabled(is_recorded):  # a modular pipeline has left the denoiser's block
            mean = _without_variance(model_output, sample, index)
            prediction = Prediction(mean[:batch], sample[:batch], level, kind)
        self._tape.retain_graph = len(active) > 1
        step = Step(prediction, timestep, eta, index, done, call, self._tape, self._corrections)
        # Every shift is computed from the unguided prediction: the order of the guidances does not matter.
        shift = torch.stack([attachment.shift(step) for attachment in active]).sum(0)
        shift = _clipped(shift, prediction.x0, self._scheduler.config)
        shift = _masked(shift, call, active[0].host.adapter.repainted).repeat(copies, *[1] * (sample.ndim - 1))
        steered = kind.write_back(mean.detach() if is_recorded else mean, shift, level)
        if mean.shape == model_output.shape:
            return steered
        return torch.cat([steered, unguided[:, mean.shape[1] :]], dim=1)


def _without_variance(model_output: Tensor, sample: Tensor, index: int) -> Tensor:
    """Drop the half that predicts a variance (Nichol & Dhariwal 2021), where there is one."""
    shape, channels = model_output.shape, sample.shape[1]
    if shape != sample.shape and shape == (len(sample), 2 * channels, *sample.shape[2:]):
        return model_output[:, :channels]
    if shape != sample.shape:
        raise ValueError(
            f"guidance expected a model output of the sample's shape {tuple(sample.shape)}, or with twice the channels "
            f"where it predicts a variance, got {tuple(shape)} at step {index}"
        )
    return model_output


def _is_doubled(sample: Tensor) -> bool:
    half = len(sample) // 2
    return len(sample) % 2 == 0 and sample[:half].equal(sample[half:])


def _clipped(shift: Tensor, x0: Tensor, config: Any) -> Tensor:
    """Return the part of the shift that a scheduler with ``clip_sample`` leaves of it.

    DDIM clips x̂₀ but not the ε that goes with it: it would take off again what the shift adds beyond the range.
    """
    if not getattr(config, "clip_sample", False):
        return shift
    bound = torch.tensor(float(getattr(config, "clip_sample_range", 1.0))).to(x0)
    return torch.clamp(x0 + shift, torch.minimum(x0, -bound), torch.maximum(x0, bound)) - x0


def _masked(shift: Tensor, call: PipelineCall | None, repainted: float | None) -> Tensor:
    """Keep the shift where an inpainting run makes the image anew; the pipeline undoes the rest."""
    if call is None or call.mask is None or repainted is None:
        return shift
    part = call.mask.detach()[: len(shift)]  # with classifier-free guidance there are two copies
    fits = part.ndim == shift.ndim and len(part) in (1, len(shift))
    if not fits or any(given not in (1, side) for given, side in zip(part.shape[1:], shift.shape[1:], strict=True)):
        return shift  # this mask is not over latents: it tells a denoiser what to keep, or belongs to attention
    part = part.to(shift)
    return shift * (part if repainted else 1 - part)
