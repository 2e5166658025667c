"""One step of a pipeline, steered: the shifts of all attached guidances are written into its model output.

This is what stands before ``scheduler.step``, whether a stock pipeline reaches it (:mod:`.attach`) or a guider of a
modular one (:mod:`.guider`). The sample is never touched, so that multistep solvers keep a consistent history.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from clip_guidance.guidance.adapters.call_stack import Run, running
from clip_guidance.guidance.adapters.noise_level import fraction_done, noise_level, step_index
from clip_guidance.guidance.adapters.prediction import Prediction, prediction_type
from clip_guidance.guidance.engine.attachment import Attachment
from clip_guidance.guidance.engine.cap import Corrections
from clip_guidance.guidance.engine.tape import DenoiserTape
from clip_guidance.guidance.weights.freeze import frozen


class Steering:
    """The guidances that are attached to one scheduler.

    Args:
        scheduler: What the steered model output goes to.
    """

    def __init__(self, scheduler: Any) -> None:
        self.attachments: list[Attachment] = []
        self._scheduler = scheduler
        self._tape = DenoiserTape(self._is_watched)
        self._corrections = Corrections(self._is_watched)

    def _is_watched(self) -> bool:
        run = running()
        return any(attachment.owns(run) for attachment in self.attachments)

    @contextmanager
    def of(self, attachment: Attachment) -> Iterator[None]:
        """Inside, ``attachment`` steers; a denoiser has hooks only if the mode or a cap needs them."""
        with ExitStack() as stack:
            self.attachments.append(attachment)
            stack.callback(self.attachments.remove, attachment)
            stack.enter_context(frozen(attachment.networks))
            if attachment.mode.needs_tape:
                stack.enter_context(self._tape.watch(attachment.readers))
            if attachment.needs_correction:
                stack.enter_context(self._corrections.watch(attachment.denoisers))
            yield

    def __call__(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, eta: float = 0.0) -> Tensor:
        """The model output of a step, (B, ...), with every shift written into it."""
        try:
            return self._steered(model_output, timestep, sample, eta, running())
        finally:
            self._tape.clear()
            self._corrections.clear()

    def _steered(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, eta: float, run: Run | None
    ) -> Tensor:
        own = [attachment for attachment in self.attachments if attachment.owns(run)]
        if not own:
            return model_output  # another pipeline shares the scheduler
        unguided = model_output.detach() if self._tape.inputs else model_output
        index = step_index(self._scheduler, timestep)
        done = fraction_done(self._scheduler, index)
        active = [attachment for attachment in own if attachment.enter_step(index, done)]
        level = noise_level(self._scheduler, timestep)
        if not active or level.sigma == 0:
            return unguided
        copies = 2 if any(attachment.doubled for attachment in active) and _is_doubled(sample) else 1
        batch = len(sample) // copies
        kind = prediction_type(self._scheduler)
        with torch.set_grad_enabled(bool(self._tape.inputs)):  # a modular pipeline has left the denoiser's block
            mean = _without_variance(model_output, sample, index)
            prediction = Prediction(mean[:batch], timestep, sample[:batch], level, kind, self._scheduler, eta)
        self._tape.retain_graph = len(active) > 1
        # Every shift is computed from the unguided prediction: the order of the guidances does not matter.
        shifts = [a.shift(prediction, index, done, run, self._tape, self._corrections) for a in active]
        shift = _clipped(torch.stack(shifts).sum(0), prediction.x0, self._scheduler.config)
        shift = _masked(shift, run, active[0].repainted).repeat(copies, *[1] * (sample.ndim - 1))
        steered = kind.write_back(mean.detach() if self._tape.inputs else mean, shift, level)
        if mean.shape == model_output.shape:
            return steered
        return torch.cat([steered, unguided[:, mean.shape[1] :]], dim=1)


def _without_variance(model_output: Tensor, sample: Tensor, index: int) -> Tensor:
    """The half that predicts the mean, of an output that predicts a variance too (Nichol & Dhariwal 2021)."""
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
    """The part of the shift that leaves x̂₀ + Δ where a scheduler with ``clip_sample`` clips it to.

    DDIM clips x̂₀ but not the ε that goes with it: what the shift adds beyond the range it would take off again.
    """
    if not getattr(config, "clip_sample", False):
        return shift
    bound = torch.tensor(float(getattr(config, "clip_sample_range", 1.0))).to(x0)
    return torch.clamp(x0 + shift, torch.minimum(x0, -bound), torch.maximum(x0, bound)) - x0


def _masked(shift: Tensor, run: Run | None, repainted: float | None) -> Tensor:
    """The shift where an inpainting run makes the image anew; elsewhere the pipeline would undo it."""
    if run is None or run.mask is None or repainted is None:
        return shift
    part = run.mask.detach()[: len(shift)]  # with classifier-free guidance there are two copies
    fits = part.ndim == shift.ndim and len(part) in (1, len(shift))
    if not fits or any(given not in (1, side) for given, side in zip(part.shape[1:], shift.shape[1:], strict=True)):
        return shift  # not a mask of latents: of a denoiser that is told what to keep, or of attention
    part = part.to(shift)
    return shift * (part if repainted else 1 - part)
