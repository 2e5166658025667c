"""Which guidances a run takes, and whose run it is, where several threads or tasks share a pipeline.

A server attaches one request's guidance in one thread and another's in the next, to one pipeline. A run takes what its
own thread, or its own asyncio task, attached; where that is nothing, it takes what one other thread attached, which
leaves the run to this one. The guidances of several threads are never mixed.

A scheduler of diffusers holds the timesteps and the index of one run. A second run that begins while the first is under
way would spoil both without a word, so it is refused; with a scheduler of its own it could work.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from clip_guidance.guidance.adapters.call_stack import RunningCall

#: What a user can do who runs one pipeline in several threads.
ADVICE = (
    "Give each thread a pipeline of its own: `own = type(pipe).from_pipe(pipe)`, "
    "`own.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)`"
)
_lock = threading.RLock()


class Attached(Protocol):
    """Hold who attached a guidance: None for the guider of the pipeline itself."""

    origin: Any


AnyAttached = TypeVar("AnyAttached", bound=Attached)
#: What was attached in this thread or task, and in those whose context it copied.
_entered: ContextVar[WeakSet] = ContextVar("clip_guidance_entered")


def enter(attachment: Attached) -> None:
    """Note that this thread or task has attached ``attachment``."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        task = None
    attachment.origin = threading.get_ident(), id(task)
    _entered.set(WeakSet([*_entered.get(()), attachment]))


def has_entered(attachments: Sequence[Attached]) -> bool:
    """Return whether this thread or task has attached one of ``attachments``."""
    return any(each in _entered.get(()) for each in attachments)


def taken(attachments: Sequence[AnyAttached]) -> list[AnyAttached]:
    """Choose the attachments that a run in this thread or task takes.

    Raises:
        RuntimeError: This thread attached none, and several others did.
    """
    mine = [each for each in attachments if each.origin is not None and each in _entered.get(())]
    if not mine:
        mine = [each for each in attachments if each.origin is not None]
        origins = {each.origin for each in mine}
        if len(origins) > 1:
            raise RuntimeError(
                f"this thread attached no guidance to the pipeline that it runs, and {len(origins)} other threads or "
                "tasks did, so that it is unknown whose is meant. Attach in the thread that runs the pipeline"
            )
    return [each for each in attachments if each.origin is None or each in mine]


class Shared:
    """Share a ``with`` block: the first to enter enters it, and the last to leave leaves it.

    Args:
        make: Makes the block's context manager.
    """

    def __init__(self, make: Callable[[], AbstractContextManager]) -> None:
        self._make = make
        self._users = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Be one of those inside."""
        with _lock:
            if not self._users:
                self._block = self._make()
                self._block.__enter__()
            self._users += 1
        try:
            yield
        finally:
            with _lock:
                self._users -= 1
                if not self._users:
                    self._block.__exit__(None, None, None)


class Turn:
    """Let one thread at a time run through the timesteps of a scheduler.

    A run begins with ``set_timesteps``. It is under way until its last step, or until the call of the pipeline that
    began it returns. A loop written by hand has no such call, so there the later run goes on, and the earlier one is
    refused when it touches the scheduler again; as is a run that began before any guidance was attached.

    Args:
        scheduler: The scheduler.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._thread: int | None = None  # whose run is under way
        self._call = RunningCall()  # the pipeline's call that the run belongs to
        self._begun: set[int] = set()  # threads that began a run since a guidance was attached
        self._overtaken: set[int] = set()

    def begin(self, set_timesteps: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Begin a run, in place of ``scheduler.set_timesteps``.

        Raises:
            RuntimeError: Another thread's run is under way.
        """
        thread, call = threading.get_ident(), RunningCall(self._scheduler)
        with _lock:
            before = self._thread
            if before is not None and before != thread:
                if self._call.goes_on():
                    raise RuntimeError(
                        f"another thread's run with this {type(self._scheduler).__name__} is under way, whose "
                        f"timesteps it holds. {ADVICE}"
                    )
                self._overtaken.add(before)
            self._overtaken.discard(thread)
            self._begun.add(thread)
            self._thread, self._call = thread, call
        return set_timesteps(*args, **kwargs)

    def check(self) -> None:
        """Refuse to go on with a run that another thread's has overtaken.

        Raises:
            RuntimeError: Another thread has begun a run since.
        """
        thread = threading.get_ident()
        began_earlier = self._begun and thread not in self._begun and RunningCall(self._scheduler).goes_on()
        if thread in self._overtaken or began_earlier:
            raise RuntimeError(
                f"another thread began a run with this {type(self._scheduler).__name__} before this one was through. "
                f"{ADVICE}"
            )

    def end(self) -> None:
        """End this thread's run, whose last step has been taken."""
        if self._thread == threading.get_ident():
            self._thread, self._call = None, RunningCall()

    @property
    def is_mine(self) -> bool:
        """Whether this thread's run is under way."""
        return self._thread == threading.get_ident()

    @property
    def has_begun(self) -> bool:
        """Whether this thread began a run since a guidance was attached."""
        return threading.get_ident() in self._begun
