"""Which of how many processes this is, under torchrun or ``accelerate launch``, on one machine or several."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

FOREVER = timedelta(days=7)  # a process may have to wait long for the slowest


class LostProcessError(ConnectionError):
    """Report that another process ended before the work that is shared was done."""


@dataclass(frozen=True)
class Processes:
    """Place this process among all that share the work.

    Attributes:
        rank: Number of this process, from 0 on.
        count: Number of all processes.
        device: Device of this process; None leaves the choice.
        wait: Returns when all processes have come to it; raises :class:`LostProcessError` where one ended before. The
            first process waits for all that live, and names all that ended.
        gather: Returns what the processes give to it, in their order.
    """

    rank: int = 0
    count: int = 1
    device: str | None = None
    wait: Callable[[], None] = lambda: None
    gather: Callable[[str], list[str]] = lambda value: [value]

    @contextmanager
    def locked(self, lock: Path, refusal: Exception) -> Iterator[None]:
        """Hold a lock in the first process, so that no second run disturbs this one.

        Args:
            lock: File of the lock, which is gone after the block.
            refusal: Raised where another run holds it.
        """
        if self.rank:
            yield
            return
        try:
            with FileLock(lock, timeout=0):
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
        except Timeout:
            raise refusal from None


def find_processes(device: str | None = None) -> Processes:
    """Find the place of this process: it is alone, unless a launcher started several.

    Args:
        device: Where to compute; with several GPUs and None, each process takes its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(device=device)
    import torch
    from accelerate import PartialState

    cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=cpu, timeout=FOREVER)
    # On GPUs too: NCCL keeps a GPU busy while it waits, and cannot say which process ended.
    group = torch.distributed.new_group(backend="gloo", timeout=FOREVER)
    wait, gather = partial(_wait, group), partial(_gather, group)
    return Processes(state.process_index, state.num_processes, device or str(state.device), wait, gather)


def _wait(group: ProcessGroup) -> None:
    import torch.distributed as dist

    try:
        dist.monitored_barrier(group, FOREVER, wait_all_ranks=True)
    except RuntimeError as error:
        named = re.search(r"Ranks? (\d[\d, ]*) failed", str(error))  # in the first process, which waits for the others
        size, here = dist.get_world_size(group), dist.get_rank(group)
        # A connection that was closed before the barrier began is told without a name.
        lost = f"process {named[1]}" if named else "process 1" if (size, here) == (2, 0) else "another process"
        raise LostProcessError(f"{lost} of {size} ended before its work was done") from error


def _gather(group: ProcessGroup, value: str) -> list[str]:
    import torch.distributed as dist

    found = [""] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group)
    return found
