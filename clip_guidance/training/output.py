"""The output folder of a training program: one run at a time writes it, and what goes wrong is said in a sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout

from clip_guidance.clip.hub import ModelError
from clip_guidance.data import SourceError, TooManyBadRows
from clip_guidance.training.checkpoints import CheckpointError
from clip_guidance.training.launch import DisagreementError
from clip_guidance.training.order import BatchSizeError
from clip_guidance.training.trainer import NonFiniteLossError

LOCK = ".lock"  # the system lets go of it when its process ends, however that ends; the file itself stays


class OutputError(ValueError):
    """The output folder cannot be written, or another run is writing it."""


# errors whose message says all that a user needs: they end the program without a traceback
EXPECTED = (
    BatchSizeError, CheckpointError, DisagreementError, ModelError, NonFiniteLossError, OSError, OutputError,
    SourceError, TooManyBadRows,
)  # fmt: skip


@contextlib.contextmanager
def locked_output(folder: str | Path, accelerator: Accelerator) -> Iterator[None]:
    """Make the output folder, and keep other runs out of it for the length of the block.

    A run that ends before it writes anything leaves no folder behind that was not there before.

    Args:
        folder: Output folder of the run.
        accelerator: Tells which process this is: the main one holds the lock for all of them.

    Raises:
        OutputError: Another run holds the lock, or the folder cannot be written.
    """
    if not accelerator.is_main_process:
        yield
        return
    folder, held = Path(folder), contextlib.ExitStack()
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(FileLock(folder / LOCK, timeout=0))
    except Timeout:
        raise OutputError(f"{folder}: another run is training in it; give this one another --output") from None
    except OSError as error:
        raise OutputError(f"{folder}: the output cannot be written: {error.strerror or error}") from None
    with held:
        try:
            yield
        finally:
            if is_new and [path.name for path in folder.iterdir()] == [LOCK]:
                with contextlib.suppress(PermissionError):  # Windows keeps files that are open
                    (folder / LOCK).unlink()
                    folder.rmdir()


@contextlib.contextmanager
def errors_as_sentences() -> Iterator[None]:
    """End the program with the message alone of an error that says all that a user needs.

    Raises:
        SystemExit: In place of one of :data:`EXPECTED`.
    """
    try:
        yield
    except EXPECTED as error:
        raise SystemExit(str(error)) from error
