"""Give up connections to a machine that vanished: one without power or network, which closes none of them.

The kernels ask and answer by TCP's keepalive, not the programs. A process that computes for days, swaps, or is stopped
is still answered for, so that nothing which is merely slow is ever given up.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOST_AFTER = 600  # seconds without an answer; a switch that restarts takes less
_QUESTIONS = 10  # asked in that time; one per minute also keeps firewalls from forgetting an idle connection
_DESCRIPTORS = Path("/proc/self/fd")


@contextmanager
def keepalive() -> Iterator[None]:
    """Let connections opened in the block fail when the other machine is silent for ``LOST_AFTER`` seconds.

    They must be open at its end. Gloo and the stores of ``torch.distributed`` have no option for it, so that their
    sockets are found in ``/proc``: on other systems than Linux this changes nothing, and a machine that vanishes is not
    noticed. Where the kernel refuses, a warning says so.

    Example:
        >>> import socket
        >>> with keepalive():
        ...     connection = socket.socket()
        >>> connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        1
        >>> connection.close()
    """
    before = _sockets()
    yield
    for name, descriptor in _sockets().items():
        if name not in before:
            with suppress(OSError):  # closed since
                _ask(os.dup(descriptor))


def _sockets() -> dict[str, int]:
    """Return the descriptors of the open sockets by their names, which the kernel does not use twice at a time."""
    found = {}
    for entry in _DESCRIPTORS.iterdir() if _DESCRIPTORS.is_dir() else ():
        with suppress(OSError):  # closed since, as the one that lists them is
            if (name := os.readlink(entry)).startswith("socket:"):
                found[name] = int(entry.name)
    return found


def _ask(descriptor: int) -> None:
    """Set the options of a socket, if it is one of TCP; a listening one hands them on. Closes the descriptor."""
    blocking = os.get_blocking(descriptor)
    with socket.socket(fileno=descriptor) as connection:
        os.set_blocking(descriptor, blocking)  # socket.setdefaulttimeout would have changed the owner's, too
        if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
            return
        seconds = max(1, LOST_AFTER // _QUESTIONS)
        options = {
            socket.TCP_KEEPIDLE: seconds,
            socket.TCP_KEEPINTVL: seconds,
            socket.TCP_KEEPCNT: _QUESTIONS,
            socket.TCP_USER_TIMEOUT: 1000 * LOST_AFTER,  # the same for what was sent and not acknowledged
        }
        try:
            for option, value in options.items():
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except OSError as error:
            warnings.warn(f"a machine that vanishes will not be noticed: {error}", stacklevel=2)
