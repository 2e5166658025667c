"""Guidance as the guider of a modular pipeline: ``pipe.update_components(guider=guidance)``.

A guider makes one prediction of the denoiser's several (classifier-free guidance and its kin). Between the guider and
``scheduler.step`` the blocks still work on the prediction: Qwen-Image's rescale it, Wan's and Z-Image's cast it, Wan
Animate's give it another shape, LTX's cut frames off, LTX-2's turn it from a clean sample into a velocity. So guidance
passes on what the guider inside it predicts, as it is, and attaches itself for the one ``scheduler.step`` that follows.
It enters where it does in any pipeline (:mod:`clip_guidance.guidance.engine.attach`), at the noise level of that very
step, and adds up with guidances that are attached.
"""

import inspect
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance
from torch import Tensor, nn

from clip_guidance.guidance.adapters.call_stack import PipelineCall, RunningCall, current_call
from clip_guidance.guidance.adapters.noise_level import step_index
from clip_guidance.guidance.adapters.schedulers import num_steps
from clip_guidance.guidance.engine.attach import steered_by
from clip_guidance.guidance.engine.patch import patched
from clip_guidance.guidance.engine.runs import BaseAttachment, warn_of_dropped, warn_of_idle
from clip_guidance.guidance.engine.threads import ADVICE


class Guider(BaseGuidance):
    """Answer what diffusers' blocks ask of a guider.

    :class:`~clip_guidance.guidance.Guidance` and :class:`~clip_guidance.guidance.AdaptiveCFG` add ``attach`` and their
    options to it. ``BaseGuidance.__init__`` is not called: the state
    belongs to the guider inside, and the constructor logs a warning every time.
    """

    #: Where diffusers believes the component was loaded from: unknown, yet a place. ``pipe.save_pretrained`` keeps
    #: nothing of a component without such an id, and a pipeline loaded again would have the blocks' own guider instead.
    _diffusers_load_id = "null|null|null|null"

    guider: BaseGuidance | None  #: the guider that this one goes around
    prepare: Callable[[Any], None]

    _own_scale = 1.0  # of classifier-free guidance, without a guider inside; 1 is the conditional prediction alone
    _alone: BaseGuidance | None = None
    _attachments: Sequence[BaseAttachment] = ()  # this guidance and those inside it, in the current run
    _step, _is_last = -1, False
    _thread: int | None = None  # whose run it is, with these timesteps of the scheduler
    _timesteps: Tensor | None = None
    _call = RunningCall()  # the pipeline's, that the run belongs to
    _ending: ExitStack | None = None  # what must be undone after the current step
    _prediction: Tensor | None = None

    @property
    def inner(self) -> BaseGuidance:
        """The guider that this one goes around, or one that passes the conditional prediction on.

        A guidance inside a guidance adds its shift, and goes around a guider in its turn.
        """
        last = self._chain[-1]
        if last.guider is not None:
            return last.guider
        if last._alone is None:
            last._alone = ClassifierFreeGuidance(guidance_scale=last._own_scale)
        return last._alone

    @property
    @abstractmethod
    def any_scale(self) -> bool:
        """Whether anything is to be done at all."""

    @abstractmethod
    def attachment_to(self, pipe: Any) -> BaseAttachment:
        """Make what acts at the steps of ``pipe``.

        Raises:
            ValueError: The pipeline cannot be guided.
        """

    @property
    def _chain(self) -> list["Guider"]:
        return [self, *(self.guider._chain if isinstance(self.guider, Guider) else [])]

    # ---- the config is read off the attributes

    @property
    def config(self) -> dict[str, Any]:
        """The arguments, as json holds them.

        Raises:
            TypeError: Unless a subclass knows them.
        """
        raise TypeError(f"a {type(self).__name__} cannot be saved, since its reward is code; a CLIPGuidance can")

    @property
    def _internal_dict(self) -> dict[str, Any]:
        return self.config  # diffusers reads the config under this name

    def register_to_config(self, **kwargs: Any) -> None:
        """Remember nothing: the config is read off the attributes."""

    # ---- the guider inside answers

    @property
    def _enabled(self) -> bool:
        return self.inner._enabled

    def enable(self) -> None:
        """Let the guider inside guide again."""
        self.inner.enable()

    def disable(self) -> None:
        """Let the guider inside pass the conditional prediction on; the reward still steers."""
        self.inner.disable()

    def get_state(self) -> dict[str, Any]:
        """Return the state of the guider inside."""
        return self.inner.get_state()

    @property
    def is_conditional(self) -> bool:
        """Whether the forward that was prepared last is a conditional one."""
        return self.inner.is_conditional

    @property
    def num_conditions(self) -> int:
        """Number of the denoiser's forwards in the step."""
        return self.inner.num_conditions

    def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:
        """Make a block state for each of the denoiser's forwards."""
        return self.inner.prepare_inputs(data)

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
        """Make a block state for each of the denoiser's forwards, from the named fields of ``data``."""
        return self.inner.prepare_inputs_from_block_state(data, input_fields)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Clean up after each of the denoiser's forwards."""
        self.inner.cleanup_models(denoiser)

    # ---- and the step that follows is guided

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        """Begin a step.

        Raises:
            RuntimeError: No modular pipeline is running, or two threads run it at once.
            ValueError: The pipeline cannot be guided.
        """
        if self._attachments:
            self._check_thread()
        self._end_step()  # a run that was cut off may have left one open
        self.inner.set_state(step, num_inference_steps, timestep)
        steering = [guidance for guidance in self._chain if guidance.any_scale]
        if not steering:
            self._attachments = ()
            return
        pipe = _current_pipe()
        if not self._attachments or self._attachments[0].host.pipe is not pipe or step <= self._step:  # a run begins
            self._thread, self._timesteps = threading.get_ident(), pipe.scheduler.timesteps
            self._call = RunningCall(pipe.scheduler)
            for guidance in steering:
                guidance.prepare(pipe)
            self._attachments = [guidance.attachment_to(pipe) for guidance in steering]
        self._check_timesteps(pipe.scheduler)
        self._step = step
        self._is_last = step_index(pipe.scheduler, timestep) + 1 >= num_steps(pipe.scheduler)

    def _check_thread(self) -> None:
        """Refuse a step while another thread's run is under way: guider and scheduler hold the state of one run."""
        if self._thread not in (None, threading.get_ident()) and self._call.goes_on():
            raise RuntimeError(f"this pipeline and its guider are in the middle of another thread's run. {ADVICE}")

    def _check_timesteps(self, scheduler: Any) -> None:
        """Refuse a step after another run has begun on the scheduler."""
        if scheduler.timesteps is not self._timesteps:
            raise RuntimeError(
                f"the timesteps of this run's {type(scheduler).__name__} were set again in the middle of it, maybe by "
                f"another thread. {ADVICE}"
            )

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Prepare one of the denoiser's forwards.

        From the first one on they are watched, where a mode or a cap needs it.
        """
        if any(attachment.is_watching for attachment in self._attachments):
            self._begin_step(denoiser)
        with self._ending_on_failure():
            self.inner.prepare_models(denoiser)

    def __call__(self, data: list[Any]) -> Any:
        """Return what the guider inside predicts; ``scheduler.step`` adds the shift."""
        if not self._attachments:
            return self.inner(data)
        self._begin_step()
        with self._ending_on_failure():
            output = self.inner(data)
        self._prediction = output.pred
        return output

    def _begin_step(self, denoiser: nn.Module | None = None) -> None:
        """Attach, until the step has been taken, or a forward of ``denoiser`` has failed."""
        if self._ending is not None:
            return
        with ExitStack() as stack:
            for attachment in self._attachments:
                stack.enter_context(steered_by(attachment))
            stack.enter_context(patched(self._attachments[0].host.scheduler, "step", self._take_step))
            if denoiser is not None:
                stack.enter_context(patched(denoiser, "forward", self._run_forward))
            self._ending = stack.pop_all()

    def _end_step(self) -> None:
        if self._ending is None:
            return
        ending, self._ending, self._prediction = self._ending, None, None
        ending.close()
        _forget_graph(self.inner)
        if self._is_last:
            attachments, self._attachments = self._attachments, ()  # they hold the pipeline, which holds this guider
            self._timesteps, self._call = None, RunningCall()
            warn_of_dropped(attachments, stacklevel=2)
            warn_of_idle(attachments, stacklevel=2)

    @contextmanager
    def _ending_on_failure(self) -> Iterator[None]:
        """Leave nothing attached if the block fails or is interrupted."""
        try:
            yield
        except BaseException:
            self._end_step()
            raise

    def _take_step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Take the ``scheduler.step`` that follows the prediction, and end the guided step."""
        if not self._is_guider_in(current_call()):  # the step that was to follow was never taken
            self._end_step()
            return step(*args, **kwargs)
        self._check_timesteps(self._attachments[0].host.scheduler)
        call = inspect.signature(step).bind(*args, **kwargs)
        call.arguments["model_output"] = _recorded(call.arguments["model_output"], self._prediction)
        try:
            return step(*call.args, **call.kwargs)
        finally:
            self._end_step()

    def _run_forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._ending_on_failure():
            return forward(*args, **kwargs)

    def _is_guider_in(self, call: PipelineCall | None) -> bool:
        return (
            call is not None
            and call.pipe is self._attachments[0].host.pipe
            and any(component is self for component in call.pipe.components.values())
        )


def _current_pipe() -> Any:
    call = current_call()
    if call is None:
        raise RuntimeError(
            "as a guider, guidance expected to be called by a block of a running modular pipeline, whose scheduler it "
            "steers; none is running. In a loop of your own use `attach`"
        )
    return call.pipe


def _forget_graph(guider: BaseGuidance) -> None:
    """Detach the average of predictions that adaptive projected guidance keeps."""
    buffer = getattr(guider, "momentum_buffer", None)
    if buffer is not None and isinstance(buffer.running_average, Tensor):
        buffer.running_average = buffer.running_average.detach()


def _recorded(model_output: Tensor, prediction: Tensor | None) -> Tensor:
    """Put the model output back on the tape where a block cast it under ``no_grad`` (Wan's do)."""
    if prediction is not None and prediction.requires_grad and not model_output.requires_grad:
        with torch.enable_grad():
            cast = prediction.to(model_output.dtype)
        if cast.equal(model_output):
            return cast
    return model_output
