"""The plug-in: guidance enters a pipeline at ``scheduler.step``, and nowhere else.

Every pipeline hands its prediction, after classifier-free guidance, to ``scheduler.step(model_output,
timestep, sample)``. :class:`GuidedStep` takes the place of that method on the one scheduler instance, and
lets the scheduler see a better ``model_output`` (:mod:`clip_guidance.guidance.engine.step`).
"""

import functools
import inspect
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from clip_guidance.guidance.engine.attachment import Attachment
from clip_guidance.guidance.engine.step import Steering

if TYPE_CHECKING:
    from clip_guidance.guidance.guidance import Guidance

_lock = threading.Lock()


def attach(guidance: "Guidance", pipe: Any) -> AbstractContextManager["Guidance"]:
    """See :meth:`Guidance.attach`. What cannot work is refused here, before anything is changed."""
    return _attached(Attachment(guidance, pipe), pipe)


class GuidedStep:
    """Stands in for ``scheduler.step`` while at least one guidance is attached."""

    def __init__(self, scheduler: Any) -> None:
        self.steering = Steering(scheduler)
        self._scheduler = scheduler
        self._users = 0
        self._own_step = vars(scheduler).get("step")  # another library's wrapper, if any
        self._step = scheduler.step
        self._signature = inspect.signature(self._step)
        functools.update_wrapper(self, self._step)  # pipelines read the signature for `eta` and `generator`

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """``scheduler.step`` with a guided ``model_output``."""
        call = self._signature.bind(*args, **kwargs)
        model_output, timestep, sample = (call.arguments[name] for name in ("model_output", "timestep", "sample"))
        eta = float(call.arguments.get("eta") or 0.0)
        call.arguments["model_output"] = self.steering(model_output, timestep, sample, eta)
        return self._step(*call.args, **call.kwargs)

    @classmethod
    @contextmanager
    def on(cls, scheduler: Any) -> Iterator["GuidedStep"]:
        """The one that stands in for ``scheduler.step`` inside the ``with`` block; the last to leave takes it away."""
        with _lock:
            if not isinstance(scheduler.step, cls):
                scheduler.step = cls(scheduler)
            guided_step = scheduler.step
            guided_step._users += 1
        try:
            yield guided_step
        finally:
            with _lock:
                guided_step._users -= 1
                if not guided_step._users and vars(scheduler).get("step") is guided_step:
                    del scheduler.step
                    if guided_step._own_step is not None:
                        scheduler.step = guided_step._own_step


@contextmanager
def _attached(attachment: Attachment, pipe: Any) -> Iterator["Guidance"]:
    guidance, scheduler = attachment.guidance, attachment.scheduler
    if not guidance.any_scale:
        guidance.start_run()
        yield guidance
        return
    with GuidedStep.on(scheduler) as guided_step, guided_step.steering.of(attachment):
        yield guidance
    if attachment.dropped:
        warnings.warn(
            f"guidance left out {attachment.dropped} shifts that were not finite; these images were "
            "steered less. A reward, decoder or denoiser in float16 is the usual cause",
            stacklevel=3,
        )
    if pipe.scheduler is not scheduler:
        warnings.warn(
            f"the pipeline's scheduler was exchanged while guidance was attached to its "
            f"{type(scheduler).__name__}; the new one was not guided. Exchange it before attaching",
            stacklevel=3,
        )
