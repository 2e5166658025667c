"""The plug-in: guidance enters a pipeline at ``scheduler.step``, and nowhere else.

Every pipeline hands its prediction, after classifier-free guidance, to ``scheduler.step(model_output,
timestep, sample)``. :class:`~clip_guidance.guidance.engine.step.Steering` wraps that method of the one scheduler
instance, and lets the scheduler see a better ``model_output``.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from clip_guidance.guidance.engine.attachment import Attachment, warn_of_dropped
from clip_guidance.guidance.engine.patch import patched, wrapper_of
from clip_guidance.guidance.engine.step import Steering
from clip_guidance.guidance.options import GuidanceOptions

AnyGuidance = TypeVar("AnyGuidance", bound=GuidanceOptions)
_lock = threading.Lock()


def attach(guidance: AnyGuidance, pipe: Any) -> AbstractContextManager[AnyGuidance]:
    """Guide ``pipe`` inside the ``with`` block; :meth:`Guidance.attach` says how.

    What cannot work is refused here, before anything is changed.
    """
    return _attached(guidance, Attachment(guidance, pipe))


@contextmanager
def _attached(guidance: AnyGuidance, attachment: Attachment) -> Iterator[AnyGuidance]:
    host = attachment.host
    if not guidance.any_scale:
        guidance.start_run()
        yield guidance
        return
    with steered_by(attachment):
        yield guidance
    warn_of_dropped([attachment], stacklevel=3)
    if host.pipe.scheduler is not host.scheduler:
        warnings.warn(
            f"the pipeline's scheduler was exchanged while guidance was attached to its "
            f"{type(host.scheduler).__name__}; the new one was not guided. Exchange it before attaching",
            stacklevel=3,
        )


@contextmanager
def steered_by(attachment: Attachment) -> Iterator[None]:
    """Let a guidance steer its pipeline's scheduler inside the ``with`` block.

    Guidances on the same scheduler share one wrapper of ``scheduler.step``; the last to leave takes it off.
    """
    scheduler = attachment.host.scheduler
    with _lock:
        steering = wrapper_of(scheduler, "step")
        if not isinstance(steering, Steering):
            steering = Steering(scheduler)
            steering.wrapping.enter_context(patched(scheduler, "step", steering))
        steering.users += 1
    try:
        with steering.watching(attachment):
            yield
    finally:
        with _lock:
            steering.users -= 1
            if not steering.users:
                steering.wrapping.close()
