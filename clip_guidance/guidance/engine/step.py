"""One step of a pipeline, steered: shifts are written into its model output.

All attached guidances add theirs, just before ``scheduler.step``, whether a stock pipeline reaches it (:mod:`.attach`)
or a guider of a modular one (:mod:`clip_guidance.guidance.guider`). The sample is never touched, so that multistep
solvers keep a consistent history.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from clip_guidance.guidance.adapters.call_stack import PipelineCall, current_call
from clip_guidance.guidance.adapters.noise_level import step_index
from clip_guidance.guidance.adapters.prediction import Prediction
from clip_guidance.guidance.adapters.schedulers import num_steps
from clip_guidance.guidance.engine.attachment import Attachment, Step
from clip_guidance.guidance.engine.cap import Corrections
from clip_guidance.guidance.engine.choice import ScaleChoice
from clip_guidance.guidance.engine.patch import patched
from clip_guidance.guidance.engine.runs import RunFollower
from clip_guidance.guidance.engine.tape import DenoiserTape
from clip_guidance.guidance.engine.threads import Shared, Turn, has_entered, taken
from clip_guidance.guidance.weights.freeze import freeze_parameters

_lock = threading.RLock()  # of changing the attachments


class Steering:
    """Wrap ``scheduler.step`` of one scheduler for all guidances that are attached to it.

    Attributes:
        attachments: The guidances.
        wrapping: Takes the wrapper off when it is closed.
        users: Number of those who need the wrapper.
    """

    def __init__(self, scheduler: Any) -> None:
        self.attachments: tuple[RunFollower, ...] = ()  # replaced as a whole, since other threads read it
        self.wrapping = ExitStack()
        self.users = 0
        self._scheduler = scheduler
        self._turn = Turn(scheduler)
        self._tape = DenoiserTape(lambda: any(each.recorded for each in self._watching()))
        self._corrections = Corrections(lambda: any(each.needs_outputs for each in self._watching()))
        self._watches: dict[tuple[str, int], Shared] = {}  # by what is watched, and the id of a network

    def wrap(self) -> None:
        """Take the place of the scheduler's methods, until :attr:`wrapping` is closed."""
        scheduler = self._scheduler
        self.wrapping.enter_context(patched(scheduler, "step", self))
        self.wrapping.enter_context(patched(scheduler, "set_timesteps", self._turn.begin))
        if hasattr(scheduler, "scale_model_input"):  # sets the index of some schedulers
            self.wrapping.enter_context(patched(scheduler, "scale_model_input", self._scale_model_input))

    def _scale_model_input(self, scale: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._turn.check()
        return scale(*args, **kwargs)

    def _own(self, call: PipelineCall | None) -> list[RunFollower]:
        """Return the attachments that the run of this thread takes."""
        found = [attachment for attachment in self.attachments if attachment.applies_to(call)]
        if call is not None and not self._turn.has_begun and not has_entered(found):
            # The run began before any guidance was attached; a guider attaches in the middle of its own.
            return [attachment for attachment in found if attachment.origin is None]
        return taken(found)

    def _watching(self) -> list[RunFollower]:
        """Return the attachments to whose run the denoiser's forward that happens right now belongs."""
        call = current_call()
        if call is None and not self._turn.is_mine and not has_entered(self.attachments):
            return []  # another thread has a use of its own for the network
        return self._own(call)

    def _watch(self, what: DenoiserTape | Corrections, network: nn.Module) -> AbstractContextManager[None]:
        """Let the tape or the corrections watch a network; one hook serves all attachments."""
        return self._watches.setdefault((type(what).__name__, id(network)), Shared(lambda: what.watch([network])))()

    @contextmanager
    def watching(self, attachment: RunFollower) -> Iterator[None]:
        """Let ``attachment`` steer inside the block.

        The denoiser has hooks only if the mode or a cap needs them.
        """
        with ExitStack() as stack:
            self._add(attachment)
            stack.callback(self._remove, attachment)
            stack.enter_context(freeze_parameters(attachment.networks))
            for network in attachment.recorded:
                stack.enter_context(self._watch(self._tape, network))
            for network in attachment.host.denoisers if attachment.needs_outputs else []:
                stack.enter_context(self._watch(self._corrections, network))
            yield

    def _add(self, attachment: RunFollower) -> None:
        with _lock:
            self.attachments = (*self.attachments, attachment)

    def _remove(self, attachment: RunFollower) -> None:
        with _lock:
            index = self.attachments.index(attachment)
            self.attachments = self.attachments[:index] + self.attachments[index + 1 :]

    def __call__(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Take the scheduler's ``step`` with a model output into which every shift is written."""
        self._turn.check()
        call = inspect.signature(step).bind(*args, **kwargs)
        given = call.arguments
        eta = float(given.get("eta") or 0.0)
        index = step_index(self._scheduler, given["timestep"])
        try:
            given["model_output"] = self._steered(given["model_output"], given["timestep"], given["sample"], eta)
        finally:
            self._tape.clear()
            self._corrections.clear()
        result = step(*call.args, **call.kwargs)
        if index + 1 >= num_steps(self._scheduler):
            self._turn.end()
        return result

    def _steered(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, eta: float) -> Tensor:
        call = current_call()
        own = self._own(call)
        if not own:  # another pipeline shares the scheduler
            for attachment in self.attachments:
                attachment.passed_by = True
            return model_output
        is_recorded, host = bool(self._tape.inputs), own[0].host
        unguided = model_output.detach() if is_recorded else model_output
        index = step_index(self._scheduler, timestep)
        active = [attachment for attachment in own if attachment.begin_step(index, call)]
        level, kind = host.noise_level(timestep), host.prediction_type
        if not active or level.sigma == 0:
            return unguided
        adapter = active[0].host.adapter
        copies = 2 if adapter.doubled and _is_doubled(sample) else 1
        batch = len(sample) // copies
        frames = call.variables.get("frames") if call is not None and adapter.framewise else None
        with torch.set_grad_enabled(is_recorded):  # a modular pipeline has left the denoiser's block
            mean = _without_variance(model_output, sample, index)
            prediction = Prediction(_as_videos(mean[:batch], frames), _as_videos(sample[:batch], frames), level, kind)
        guidances = [each for each in active if isinstance(each, Attachment)]
        self._tape.retain_graph = len(guidances) > 1
        self._tape.made_anew = adapter.made_anew(call, prediction.sample)
        step = Step(prediction, timestep, eta, index, call, self._tape, self._corrections)
        for choice in (each for each in active if isinstance(each, ScaleChoice)):
            with torch.set_grad_enabled(is_recorded or torch.is_grad_enabled()):
                chosen = replace(step.prediction, model_output=choice.choose(step))
                step, mean = replace(step, prediction=chosen), _tiled(chosen.model_output, frames, copies)
        unsteered = mean.detach() if is_recorded else mean
        steered = unsteered
        if guidances:
            steered = kind.write_back(unsteered, self._shift(step, guidances, frames, copies), level)
        if mean.shape == model_output.shape:
            return steered
        return torch.cat([steered, unguided[:, mean.shape[1] :]], dim=1)

    def _shift(self, step: Step, guidances: list[Attachment], frames: int | None, copies: int) -> Tensor:
        """Add the guidances' shifts up, in the form in which the pipeline hands the sample to the scheduler."""
        # Every shift is computed from the unguided prediction: the order of the guidances does not matter.
        shift = torch.stack([attachment.shift(step) for attachment in guidances]).sum(0)
        shift = _clipped(shift, step.prediction.x0, self._scheduler.config)
        if self._tape.made_anew is not None:  # the pipeline undoes the rest
            shift = shift * self._tape.made_anew
        return _tiled(shift, frames, copies)


def _as_videos(images: Tensor, frames: int | None) -> Tensor:
    """Gather frames (B·F, C, h, w) to videos (B, C, F, h, w), as the denoiser reads them; None for no frames."""
    return images if frames is None else images.unflatten(0, (-1, frames)).transpose(1, 2)


def _tiled(videos: Tensor, frames: int | None, copies: int) -> Tensor:
    """Undo :func:`_as_videos`, and give each of the sample's copies the same."""
    images = videos if frames is None else videos.transpose(1, 2).flatten(0, 1)
    return images if copies == 1 else images.repeat(copies, *[1] * (images.ndim - 1))


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
