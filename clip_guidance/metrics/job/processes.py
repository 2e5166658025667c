"""Which of how many processes this is, under torchrun or ``accelerate launch``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Processes:
    """Place this process among all that share the work.

    Attributes:
        rank: Number of this process, from 0 on.
        count: Number of all processes.
        device: Device of this process; None leaves the choice.
        wait: Returns when all processes have come to it.
    """

    rank: int = 0
    count: int = 1
    device: str | None = None
    wait: Callable[[], None] = lambda: None


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
    state = PartialState(cpu=cpu, timeout=timedelta(days=7))  # a process may have to wait long for the slowest
    return Processes(state.process_index, state.num_processes, device or str(state.device), state.wait_for_everyone)
