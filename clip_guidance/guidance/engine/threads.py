"""Which guidances a run takes, and whose run it is, where several threads or tasks share a pipeline.

A server attaches one request's guidance in one thread and another's in the next, to one pipeline. A run takes what its
own thread, or its own asyncio task, attached; where that is nothing, it takes what one other thread attached, which
leaves the run to this one. The guidances of several threads are never mixed.

A scheduler of diffusers holds the timesteps and the index of one run. A second run that begins while the first is under
way would spoil both without a word, so it is refused; with a scheduler of its own it could work.
"""

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from clip_guidance.guidance.adapters.call_stack import is_calling

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

    The call stacks of the other threads show whether a pipeline's run goes on. A loop written by hand shows nothing, so
    there the later run goes on, and the earlier one is refused when it touches the scheduler again.

    Args:
        scheduler: The scheduler.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._thread: int | None = None  # whose run is under way
        self._overtaken: set[int] = set()
        others = sys._current_frames().keys() - {threading.get_ident()}
        self._earlier = {thread for thread in others if is_calling(thread, scheduler)}

    def begin(self, set_timesteps: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Begin a run, in place of ``scheduler.set_timesteps``.

        Raises:
            RuntimeError: Another thread's run is under way.
        """
        thread = threading.get_ident()
        with _lock:
            before = self._thread
            others = {*self._earlier, before} - {thread, None}
            if any(is_calling(other, self._scheduler) for other in others if other is not None):
                raise RuntimeError(
                    f"another thread's run with this {type(self._scheduler).__name__} is under way, whose timesteps "
                    f"it holds. {ADVICE}"
                )
            if before not in (thread, None):
                self._overtaken.add(before)
            self._overtaken.discard(thread)
            self._earlier.discard(thread)
            self._thread = thread
        return set_timesteps(*args, **kwargs)

    def check(self) -> None:
        """Refuse to go on with a run that another thread's has overtaken.

        Raises:
            RuntimeError: Another thread has begun a run since.
        """
        if threading.get_ident() in self._overtaken:
            raise RuntimeError(
                f"another thread began a run with this {type(self._scheduler).__name__} before this one was through. "
                f"{ADVICE}"
            )

    def end(self) -> None:
        """End this thread's run, whose last step has been taken."""
        if self._thread == threading.get_ident():
            self._thread = None

    @property
    def is_mine(self) -> bool:
        """Whether this thread's run is under way."""
        return self._thread == threading.get_ident()

    @property
    def is_earlier(self) -> bool:
        """Whether this thread's run began before any guidance was attached by another."""
        return threading.get_ident() in self._earlier
