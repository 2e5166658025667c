"""Which of how many processes this is, under torchrun or ``accelerate launch``, on one machine or several."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from clip_guidance.metrics.job import keepalive

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

FOREVER = timedelta(days=7)  # a process may have to wait long for the slowest
# What gloo tells of a connection that the kernel gave up; of one that the other process closed, it tells so.
_SILENT = re.compile("Connection timed out|No route to host|unreachable")


class LostProcessError(ConnectionError):
    """Report that another process ended, or its machine vanished, before the work that is shared was done."""


@dataclass(frozen=True)
class Processes:
    """Place this process among all that share the work.

    Attributes:
        rank: Number of this process, from 0 on.
        count: Number of all processes.
        device: Device of this process; None leaves the choice.
        wait: Returns when all processes have come to it; raises :class:`LostProcessError` where one ended before, or
            its machine did not answer for ten minutes. The first process waits for all that live, and names all that
            ended meanwhile.
        gather: Returns what the processes give to it, in their order; raises as ``wait`` does.
    """

    rank: int = 0
    count: int = 1
    device: str | None = None
    wait: Callable[[], None] = lambda: None
    gather: Callable[[Any], list[Any]] = lambda value: [value]

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

    A process may be slow, busy or stopped for days, and the others wait for it. One that ended is named at once, and
    one whose machine vanished within eleven minutes (``keepalive.LOST_AFTER``; on Linux alone).

    Args:
        device: Where to compute; with several GPUs and None, each process takes its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(device=device)
    import torch
    from accelerate import PartialState

    cpu = device == "cpu" or not torch.cuda.is_available()
    with keepalive.keepalive():
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
        raise _lost(group, [int(rank) for rank in named[1].split(",")] if named else []) from error


def _gather(group: ProcessGroup, value: Any) -> list[Any]:
    import torch.distributed as dist

    found = [None] * dist.get_world_size(group)
    try:
        dist.all_gather_object(found, value, group)
    except RuntimeError as error:
        raise _lost(group, []) from error
    return found


def _lost(group: ProcessGroup, ranks: Sequence[int]) -> LostProcessError:
    """Name the processes that ended or vanished: some known ones, or else those whose connections are broken."""
    import torch
    import torch.distributed as dist

    broken, here = {}, dist.get_rank(group)
    for rank in (rank for rank in range(dist.get_world_size(group)) if rank != here):
        try:
            dist.isend(torch.zeros(1), rank, group)  # never received, since this process ends
        except RuntimeError as error:  # at once, where the connection is broken; names no process, but why
            broken[rank] = str(error)
    reasons = {rank: broken.get(rank, "") for rank in ranks} or broken
    return LostProcessError(_told(reasons, dist.get_world_size(group)))


def _told(reasons: Mapping[int, str], size: int) -> str:
    """Say what became of processes, by the reasons that gloo gives; where there are none, some other process ended."""
    silent = sorted(rank for rank, reason in reasons.items() if _SILENT.search(reason))
    ended = sorted(reasons.keys() - silent)
    told = []
    if silent:
        told.append(
            f"{_named(silent, size)} vanished before its work was done, without an answer for {keepalive.LOST_AFTER} s"
        )
    if ended or not silent:
        told.append(f"{_named(ended, size)} ended before its work was done")
    return "; ".join(told)


def _named(ranks: Sequence[int], size: int) -> str:
    return f"process {', '.join(map(str, ranks))} of {size}" if ranks else f"another process of {size}"
