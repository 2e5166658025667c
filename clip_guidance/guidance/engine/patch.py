"""Wrap a method of one object for a while, and leave everything as it was.

Only the instance is touched, never its class. A wrapper that someone else has put there before is called through and
restored; one that someone else puts on top is left where it is. Wrappers may be taken off in any order.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_ABSENT = object()
# Of putting wrappers on and taking them off, in any thread; a generator that is collected meanwhile may take one off.
_lock = threading.RLock()


class _Patch:
    """Stand in for a method.

    A wrapper that was taken off while another one is on top of it calls straight through.
    """

    def __init__(self, obj: Any, name: str, wrapper: Callable[..., Any]) -> None:
        self.wrapper = wrapper
        self.is_on = True
        self.original = getattr(obj, name)
        self.own = vars(obj).get(name, _ABSENT)  # what the instance itself held
        # Pipelines read the signature of `scheduler.step`. The attributes of a patch further in are not ours.
        functools.update_wrapper(self, self.original, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_on:
            return self.wrapper(self.original, *args, **kwargs)
        return self.original(*args, **kwargs)


@contextmanager
def patched(obj: Any, name: str, wrapper: Callable[..., Any]) -> Iterator[None]:
    """Wrap the method ``name`` of ``obj`` inside the ``with`` block.

    The method keeps its name and signature. Afterwards, also after an exception, ``obj`` is as it was before.

    Args:
        obj: The object; others of its class are not affected.
        name: The method's name.
        wrapper: Called in the method's place as ``wrapper(original, *args, **kwargs)``, where ``original`` is the
            method as it was found.

    Raises:
        AttributeError: ``obj`` has no such method.

    Example:
        >>> class Greeter:
        ...     def greet(self, name):
        ...         return f"hello {name}"
        >>> greeter = Greeter()
        >>> with patched(greeter, "greet", lambda original, name: original(name).upper()):
        ...     greeter.greet("you")
        'HELLO YOU'
        >>> greeter.greet("you")
        'hello you'
    """
    with _lock:
        patch = _Patch(obj, name, wrapper)
        setattr(obj, name, patch)
    try:
        yield
    finally:
        with _lock:
            patch.is_on = False
            while isinstance(top := vars(obj).get(name), _Patch) and not top.is_on:
                if top.own is _ABSENT:
                    delattr(obj, name)
                else:
                    setattr(obj, name, top.own)


def wrapper_of(obj: Any, name: str) -> Callable[..., Any] | None:
    """Return the wrapper that is outermost around a method, if :func:`patched` has put it there."""
    outermost = vars(obj).get(name)
    return outermost.wrapper if isinstance(outermost, _Patch) and outermost.is_on else None
