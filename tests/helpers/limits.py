"""Bad days: little memory, little time, folders that may not be written."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def little_memory(more: int) -> Iterator[None]:
    """Let this process allocate no more than ``more`` bytes of address space."""
    resource = pytest.importorskip("resource", reason="needs the limits of POSIX")
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc/self/statm")
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def little_time(seconds: int) -> Iterator[None]:
    """Break off what takes longer; where it does not come back to Python, within SQLite, end the process."""

    def over(*_: object) -> None:
        raise TimeoutError(f"takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(2 * seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def read_only_copy(folder: Path) -> Iterator[Path]:
    """A copy of a folder that may not be written; root, who may write anything, is somebody else meanwhile."""
    place = Path(tempfile.mkdtemp())
    copy = place / "copy"
    shutil.copytree(folder, copy)
    for path in [*copy.rglob("*"), copy, place]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield copy
    finally:
        if root:
            os.seteuid(0)
        for path in (place, copy):
            path.chmod(0o755)
        shutil.rmtree(place)
