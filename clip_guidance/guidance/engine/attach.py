"""The plug-in: guidance enters a pipeline at ``scheduler.step``, and nowhere else.

Every pipeline hands its prediction, after classifier-free guidance, to ``scheduler.step(model_output,
timestep, sample)``. :class:`~clip_guidance.guidance.engine.step.Steering` wraps that method of the one scheduler
instance, and lets the scheduler see a better ``model_output``.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ContextDecorator, ExitStack, contextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

from transformers import PreTrainedTokenizerBase

from clip_guidance.clip.tokenizer import one_at_a_time
from clip_guidance.guidance.engine.attachment import Attachment, warn_of_dropped, warn_of_unguided
from clip_guidance.guidance.engine.patch import patched, wrapper_of
from clip_guidance.guidance.engine.step import Steering
from clip_guidance.guidance.engine.threads import enter
from clip_guidance.guidance.options import GuidanceOptions

AnyGuidance = TypeVar("AnyGuidance")
AnyOptions = TypeVar("AnyOptions", bound=GuidanceOptions)
_lock = threading.RLock()  # a generator that is collected while the lock is held may end a block


def attach(guidance: AnyOptions, pipe: Any) -> AbstractContextManager[AnyOptions]:
    """Guide ``pipe`` inside the ``with`` block; :meth:`Guidance.attach` says how.

    What cannot work is refused here, before anything is changed.
    """
    attachment = Attachment(guidance, pipe)
    return Block(guidance, lambda: _attached(guidance, attachment))


class Block(ContextDecorator, AbstractContextManager, Generic[AnyGuidance]):
    """Attach a guidance, or particles, inside the ``with`` block; say so where there is none.

    Args:
        guidance: What is attached.
        attached: Makes the context manager that attaches it, and yields it.
    """

    def __init__(self, guidance: AnyGuidance, attached: Callable[[], AbstractContextManager[AnyGuidance]]) -> None:
        self._guidance, self._attached = guidance, attached
        self._open: list[AbstractContextManager[AnyGuidance]] = []
        self._was_entered = False

    def __enter__(self) -> AnyGuidance:
        self._was_entered = True
        self._open.append(self._attached())
        return self._open[-1].__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._open.pop().__exit__(kind, error, traceback)

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:  # the module may be gone at the end
        if not self._was_entered:
            warn(
                f"attach() alone steers nothing, and the {type(self._guidance).__name__} was never attached. Write "
                "`with guidance.attach(pipe):` and call the pipeline inside",
                stacklevel=2,
            )


@contextmanager
def _attached(guidance: AnyOptions, attachment: Attachment) -> Iterator[AnyOptions]:
    host = attachment.host
    if not guidance.any_scale:
        guidance.start_run()
        with guidance.attached():
            yield guidance
        return
    enter(attachment)
    with guidance.attached(), _encoding_one_at_a_time(host.pipe), steered_by(attachment):
        yield guidance
    warn_of_dropped([attachment], stacklevel=4)
    if getattr(host.pipe, host.adapter.scheduler) is not host.scheduler:
        warnings.warn(
            f"the pipeline's scheduler was exchanged while guidance was attached to its "
            f"{type(host.scheduler).__name__}; the new one was not guided. Exchange it before attaching",
            stacklevel=4,
        )
    else:
        warn_of_unguided([attachment], stacklevel=4)


@contextmanager
def _encoding_one_at_a_time(pipe: Any) -> Iterator[None]:
    """Let threads that share the pipeline's tokenizers encode one after the other."""
    with ExitStack() as stack:
        for component in vars(pipe).values():
            if isinstance(component, PreTrainedTokenizerBase):
                stack.enter_context(patched(component, "_encode_plus", one_at_a_time))
        yield


@contextmanager
def steered_by(attachment: Attachment) -> Iterator[None]:
    """Let a guidance steer its pipeline's scheduler inside the ``with`` block."""
    with steering_of(attachment.host.scheduler) as steering, steering.watching(attachment):
        yield


@contextmanager
def steering_of(scheduler: Any) -> Iterator[Steering]:
    """Wrap ``scheduler.step`` inside the ``with`` block.

    All that is attached to the same scheduler shares one wrapper; the last to leave takes it off.
    """
    with _lock:
        steering = wrapper_of(scheduler, "step")
        if not isinstance(steering, Steering):
            steering = Steering(scheduler)
            steering.wrap()
        steering.users += 1
    try:
        yield steering
    finally:
        with _lock:
            steering.users -= 1
            if not steering.users:
                steering.wrapping.close()
