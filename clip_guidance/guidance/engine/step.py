"""One step of a pipeline, steered: shifts are written into its model output.

All attached guidances add theirs, just before ``scheduler.step``, whether a stock pipeline reaches it (:mod:`.attach`)
or a guider of a modular one (:mod:`clip_guidance.guidance.guider`). The sample is never touched, so that multistep
solvers keep a consistent history.
"""

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from clip_guidance.guidance.adapters.call_stack import PipelineCall, current_call
from clip_guidance.guidance.adapters.noise_level import step_index
from clip_guidance.guidance.adapters.prediction import Prediction
from clip_guidance.guidance.adapters.schedulers import num_steps
from clip_guidance.guidance.engine.attachment import Attachment, Step
from clip_guidance.guidance.engine.batch import BatchLayout, model_mean
from clip_guidance.guidance.engine.cap import Corrections
from clip_guidance.guidance.engine.host import Host
from clip_guidance.guidance.engine.patch import patched
from clip_guidance.guidance.engine.tape import DenoiserTape
from clip_guidance.guidance.engine.threads import Shared, Turn, has_entered, taken
from clip_guidance.guidance.weights.freeze import freeze_parameters

_lock = threading.RLock()  # of changing the attachments and the followers


class Follower(Protocol):
    """Take the steps of a run in the scheduler's place, after guidance: particles, which exchange their rows."""

    origin: Any
    host: Host

    def applies_to(self, call: PipelineCall | None) -> bool:
        """Return whether ``call`` is one that it follows."""

    def take(
        self, step: Callable[..., Any], given: inspect.BoundArguments, index: int, call: PipelineCall | None
    ) -> tuple[Any, Tensor | None]:
        """Take a step; return its output, and the sample (B,) that took the place of each, or None."""


AnyAttached = TypeVar("AnyAttached", Attachment, Follower)


class Steering:
    """Wrap ``scheduler.step`` of one scheduler for all guidances that are attached to it.

    Attributes:
        attachments: The guidances.
        followers: Those who take the steps after the guidances.
        wrapping: Takes the wrapper off when it is closed.
        users: Number of those who need the wrapper.
    """

    def __init__(self, scheduler: Any) -> None:
        self.attachments: tuple[Attachment, ...] = ()  # replaced as a whole, since other threads read it
        self.followers: tuple[Follower, ...] = ()
        self.wrapping = ExitStack()
        self.users = 0
        self._scheduler = scheduler
        self._turn = Turn(scheduler)
        self._tape = DenoiserTape(lambda: any(each.recorded for each in self._watching()))
        self._corrections = Corrections(lambda: any(each.needs_correction for each in self._watching()))
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

    def _own(self, attached: Sequence[AnyAttached], call: PipelineCall | None) -> list[AnyAttached]:
        """Return those of the attachments, or of the followers, that the run of this thread takes."""
        found = [each for each in attached if each.applies_to(call)]
        if call is not None and not self._turn.has_begun and not has_entered(found):
            # The run began before any guidance was attached; a guider attaches in the middle of its own.
            return [each for each in found if each.origin is None]
        return taken(found)

    def _watching(self) -> list[Attachment]:
        """Return the attachments to whose run the denoiser's forward that happens right now belongs."""
        call = current_call()
        if call is None and not self._turn.is_mine and not has_entered(self.attachments):
            return []  # another thread has a use of its own for the network
        return self._own(self.attachments, call)

    def _watch(self, what: DenoiserTape | Corrections, network: nn.Module) -> AbstractContextManager[None]:
        """Let the tape or the corrections watch a network; one hook serves all attachments."""
        return self._watches.setdefault((type(what).__name__, id(network)), Shared(lambda: what.watch([network])))()

    @contextmanager
    def watching(self, attachment: Attachment) -> Iterator[None]:
        """Let ``attachment`` steer inside the block.

        The denoiser has hooks only if the mode or a cap needs them.
        """
        with ExitStack() as stack:
            self._add(attachment)
            stack.callback(self._remove, attachment)
            stack.enter_context(freeze_parameters(attachment.networks))
            for network in attachment.recorded:
                stack.enter_context(self._watch(self._tape, network))
            for network in attachment.host.denoisers if attachment.needs_correction else []:
                stack.enter_context(self._watch(self._corrections, network))
            yield

    @contextmanager
    def followed_by(self, follower: Follower) -> Iterator[None]:
        """Let ``follower`` take the steps of its runs inside the block."""
        with _lock:
            self.followers = (*self.followers, follower)
        try:
            yield
        finally:
            with _lock:
                self.followers = tuple(each for each in self.followers if each is not follower)

    def _add(self, attachment: Attachment) -> None:
        with _lock:
            self.attachments = (*self.attachments, attachment)

    def _remove(self, attachment: Attachment) -> None:
        with _lock:
            index = self.attachments.index(attachment)
            self.attachments = self.attachments[:index] + self.attachments[index + 1 :]

    def __call__(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Take the scheduler's ``step`` with a model output into which every shift is written."""
        self._turn.check()
        call = inspect.signature(step).bind(*args, **kwargs)
        given = call.arguments
        eta = float(given.get("eta") or 0.0)
        index, running = step_index(self._scheduler, given["timestep"]), current_call()
        own = self._own(self.attachments, running)
        try:
            given["model_output"] = self._steered(
                own, running, given["model_output"], given["timestep"], given["sample"], eta
            )
        finally:
            self._tape.clear()
            self._corrections.clear()
        result = self._followed(own, step, call, index, running)
        if index + 1 >= num_steps(self._scheduler):
            self._turn.end()
        return result

    def _followed(
        self,
        own: list[Attachment],
        step: Callable[..., Any],
        given: inspect.BoundArguments,
        index: int,
        call: PipelineCall | None,
    ) -> Any:
        """Take a step; a follower may exchange rows, and what the guidances remember of each goes with it."""
        followers = self._own(self.followers, call)
        if not followers:
            return step(*given.args, **given.kwargs)
        result, parents = followers[0].take(step, given, index, call)
        if parents is not None:
            for attachment in own:
                attachment.take_rows(parents)
        return result

    def _steered(
        self,
        own: list[Attachment],
        call: PipelineCall | None,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        eta: float,
    ) -> Tensor:
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
        layout = BatchLayout.of(sample, active[0].host.adapter, call)
        with torch.set_grad_enabled(is_recorded):  # a modular pipeline has left the denoiser's block
            mean = model_mean(model_output, sample, index)
            prediction = Prediction(layout.samples(mean), layout.samples(sample), level, kind)
        self._tape.retain_graph = len(active) > 1
        self._tape.made_anew = active[0].host.adapter.made_anew(call, prediction.sample)
        step = Step(prediction, timestep, eta, index, call, self._tape, self._corrections)
        # Every shift is computed from the unguided prediction: the order of the guidances does not matter.
        shift = torch.stack([attachment.shift(step) for attachment in active]).sum(0)
        shift = _clipped(shift, prediction.x0, self._scheduler.config)
        if self._tape.made_anew is not None:  # the pipeline undoes the rest
            shift = shift * self._tape.made_anew
        shift = layout.handed(shift)
        steered = kind.write_back(mean.detach() if is_recorded else mean, shift, level)
        if mean.shape == model_output.shape:
            return steered
        return torch.cat([steered, unguided[:, mean.shape[1] :]], dim=1)


def _clipped(shift: Tensor, x0: Tensor, config: Any) -> Tensor:
    """Return the part of the shift that a scheduler with ``clip_sample`` leaves of it.

    DDIM clips x̂₀ but not the ε that goes with it: it would take off again what the shift adds beyond the range.
    """
    if not getattr(config, "clip_sample", False):
        return shift
    bound = torch.tensor(float(getattr(config, "clip_sample_range", 1.0))).to(x0)
    return torch.clamp(x0 + shift, torch.minimum(x0, -bound), torch.maximum(x0, bound)) - x0
