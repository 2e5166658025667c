"""The one way to write a file: whole, on the disk, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any


def sync_file(file: IO[Any]) -> None:
    """What was written to an open file is on the disk on return."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """New and renamed files of a folder are on the disk on return, where the system can do that (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
