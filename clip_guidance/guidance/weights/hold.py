"""Set attributes of shared objects for a while, in several threads at once.

Two pipelines may share a network, and each may be guided in a thread of its own. What guidance sets on the network for
a step must stay until the last of them is through, and then be what it was before the first.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

ABSENT = object()  # in place of a value that the object itself does not hold
_lock = threading.RLock()  # a generator that is collected while the lock is held may release what it holds


@dataclass
class _Hold:
    obj: Any  # keeps the object alive, whose id is the key
    before: Any
    users: int = 0


_holds: dict[tuple[int, str], _Hold] = {}  # by the id of an object and the name of its attribute


@contextmanager
def held(obj: Any, name: str, value: Any, released: Callable[[], Any] | None = None) -> Iterator[None]:
    """Set ``obj.name`` to ``value`` inside the ``with`` block; the last block to end restores it.

    Args:
        obj: The object; all blocks that hold one of its attributes hold the same value.
        name: The attribute's name; one that the object does not hold itself is deleted afterwards.
        value: The value.
        released: Called after the attribute has been restored.
    """
    key = id(obj), name
    with _lock:
        hold = _holds.setdefault(key, _Hold(obj, vars(obj).get(name, ABSENT)))
        hold.users += 1
        setattr(obj, name, value)
    try:
        yield
    finally:
        with _lock:
            hold.users -= 1
            if not hold.users:
                del _holds[key]
                if hold.before is ABSENT:
                    delattr(obj, name)
                else:
                    setattr(obj, name, hold.before)
                if released is not None:
                    released()


def lacks(obj: Any, name: str) -> bool:
    """Return whether an object has an attribute only because it is :func:`held`, or not at all."""
    with _lock:
        hold = _holds.get((id(obj), name))
        return hold.before is ABSENT if hold else not hasattr(obj, name)
