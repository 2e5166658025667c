"""Guidance as the guider of a modular pipeline: ``pipe.update_components(guider=guidance)``.

A guider makes one prediction of the denoiser's several (classifier-free guidance and its kin). Between that and
``scheduler.step`` the blocks still work on it: Qwen-Image's rescale it, Wan's and Z-Image's cast it, Wan Animate's give
it another shape, LTX's cut frames off, LTX-2's turn it from a clean sample into a velocity. So guidance passes on what
the guider inside it predicts, as it is, and attaches itself for the one ``scheduler.step`` that follows. It enters
where it does in any pipeline (:mod:`.attach`), at the noise level of that very step, and adds up with guidances
that are attached.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance
from torch import Tensor, nn

from clip_guidance.guidance.adapters.call_stack import Run, running
from clip_guidance.guidance.adapters.noise_level import num_steps, step_index
from clip_guidance.guidance.engine.attach import GuidedStep
from clip_guidance.guidance.engine.attachment import Attachment


class Guider(BaseGuidance):
    """What diffusers' blocks ask of a guider; :class:`~clip_guidance.guidance.guidance.Guidance` is one.

    ``BaseGuidance.__init__`` is not called: its state is that of the guider inside, and it logs at every construction.
    """

    guider: BaseGuidance | None
    #: In diffusers' words, where the component was loaded from: unknown, yet a place. Of a component that has none
    #: ``pipe.save_pretrained`` keeps nothing, and a pipeline loaded again would have the blocks' own guider instead.
    _diffusers_load_id = "null|null|null|null"

    _alone: BaseGuidance | None = None
    _attachments: Sequence[Attachment] = ()  # in the run that is going on: of this and of the guidances inside
    _step, _is_last = -1, False
    _ending: ExitStack | None = None  # of the step that is going on: what must be undone
    _prediction: Tensor | None = None

    @property
    def inner(self) -> BaseGuidance:
        """The guider that this one goes around; without any, one that passes the conditional prediction on.

        A guidance inside a guidance adds its shift, and goes around a guider in its turn.
        """
        guider = self._chain[-1].guider
        if guider is not None:
            return guider
        if self._alone is None:
            self._alone = ClassifierFreeGuidance(guidance_scale=1.0)
        return self._alone

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
        return self.config  # under this name diffusers reads it

    def register_to_config(self, **kwargs: Any) -> None:
        """Nothing to remember."""

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
        """Of the guider inside."""
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
        """A block state for each of the denoiser's forwards."""
        return self.inner.prepare_inputs(data)

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
        """The same, of fields that are named."""
        return self.inner.prepare_inputs_from_block_state(data, input_fields)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Called after each of the denoiser's forwards."""
        self.inner.cleanup_models(denoiser)

    # ---- and the step that follows is guided

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        """A step begins.

        Raises:
            RuntimeError: No modular pipeline is running.
            ValueError: The pipeline cannot be guided.
        """
        self._end_step()  # of a run that was cut off
        self.inner.set_state(step, num_inference_steps, timestep)
        steering = [guidance for guidance in self._chain if guidance.any_scale]
        if not steering:
            self._attachments = ()
            return
        pipe = _running_pipe()
        if not self._attachments or self._attachments[0].pipe is not pipe or step <= self._step:  # a run begins
            for guidance in steering:
                guidance.meet(pipe)
            self._attachments = [Attachment(guidance, pipe) for guidance in steering]
        self._step = step
        self._is_last = step_index(pipe.scheduler, timestep) + 1 >= num_steps(pipe.scheduler)

    def prepare_models(self, denoiser: nn.Module) -> None:
        """One of the denoiser's forwards comes; from the first on they are watched, by what needs it."""
        if any(attachment.mode.needs_tape or attachment.needs_correction for attachment in self._attachments):
            self._begin_step(denoiser)
        with self._ending_on_failure():
            self.inner.prepare_models(denoiser)

    def __call__(self, data: list[Any]) -> Any:
        """What the guider inside predicts; ``scheduler.step`` will add the shift to what it is given."""
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
        scheduler = self._attachments[0].scheduler
        with ExitStack() as stack:
            guided_step = stack.enter_context(GuidedStep.on(scheduler))
            for attachment in self._attachments:
                stack.enter_context(guided_step.steering.of(attachment))
            stack.enter_context(self._once(scheduler))
            if denoiser is not None:
                stack.enter_context(_forwards_within(self._ending_on_failure, denoiser))
            self._ending = stack.pop_all()

    def _end_step(self) -> None:
        if self._ending is None:
            return
        ending, self._ending, self._prediction = self._ending, None, None
        ending.close()
        _forget_graph(self.inner)
        if self._is_last:
            dropped = sum(attachment.dropped for attachment in self._attachments)
            self._attachments = ()  # which hold the pipeline, which holds this
            if dropped:
                warnings.warn(
                    f"guidance left out {dropped} shifts that were not finite; these images were steered less. A "
                    "reward, decoder or denoiser in float16 is the usual cause",
                    stacklevel=2,
                )

    @contextmanager
    def _ending_on_failure(self) -> Iterator[None]:
        """Whatever fails inside, or is interrupted, leaves nothing attached."""
        try:
            yield
        except BaseException:
            self._end_step()
            raise

    @contextmanager
    def _once(self, scheduler: Any) -> Iterator[None]:
        """Inside, the next ``scheduler.step`` ends the step."""
        step = scheduler.step
        signature = inspect.signature(step)

        @functools.wraps(step)
        def last_step(*args: Any, **kwargs: Any) -> Any:
            scheduler.step = step
            if not self._is_guider_in(running()):  # the step that was to follow was never taken
                self._end_step()
                return scheduler.step(*args, **kwargs)
            call = signature.bind(*args, **kwargs)
            call.arguments["model_output"] = _recorded(call.arguments["model_output"], self._prediction)
            try:
                return step(*call.args, **call.kwargs)
            finally:
                self._end_step()

        scheduler.step = last_step
        try:
            yield
        finally:
            if scheduler.step is last_step:
                scheduler.step = step

    def _is_guider_in(self, run: Run | None) -> bool:
        return (
            run is not None
            and run.pipe is self._attachments[0].pipe
            and any(component is self for component in run.pipe.components.values())
        )


def _running_pipe() -> Any:
    run = running()
    if run is None:
        raise RuntimeError(
            "as a guider, guidance expected to be called by a block of a running modular pipeline, whose scheduler it "
            "steers; none is running. In a loop of your own use `attach`"
        )
    return run.pipe


def _forget_graph(guider: BaseGuidance) -> None:
    """Adaptive projected guidance keeps an average of its predictions, and with it all that was recorded for them."""
    buffer = getattr(guider, "momentum_buffer", None)
    if buffer is not None and isinstance(buffer.running_average, Tensor):
        buffer.running_average = buffer.running_average.detach()


def _recorded(model_output: Tensor, prediction: Tensor | None) -> Tensor:
    """The model output on the tape, where a block of its own, under ``no_grad``, has cast the prediction (Wan's do)."""
    if prediction is not None and prediction.requires_grad and not model_output.requires_grad:
        with torch.enable_grad():
            cast = prediction.to(model_output.dtype)
        if cast.equal(model_output):
            return cast
    return model_output


@contextmanager
def _forwards_within(context: Callable[[], AbstractContextManager[None]], network: nn.Module) -> Iterator[None]:
    """Inside, each forward of ``network`` runs in a ``context()``."""
    forward, own = network.forward, vars(network).get("forward")

    @functools.wraps(forward)
    def within(*args: Any, **kwargs: Any) -> Any:
        with context():
            return forward(*args, **kwargs)

    network.forward = within
    try:
        yield
    finally:
        del network.forward
        if own is not None:
            network.forward = own
