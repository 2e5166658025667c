"""Which of how many processes this is, under torchrun or ``accelerate launch``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Processes:
    """This process among all that share the work.

    Attributes:
        rank: its number, from 0 on.
        count: of all.
        device: where it computes; None leaves the choice.
        wait: returns when all have come here.
    """

    rank: int = 0
    count: int = 1
    device: str | None = None
    wait: Callable[[], None] = lambda: None


def find_processes(device: str | None = None) -> Processes:
    """This process alone, unless a launcher started several.

    Args:
        device: where to compute; with several GPUs and None, each process takes its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(device=device)
    import torch
    from accelerate import PartialState

    cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=cpu, timeout=timedelta(days=7))  # the last may have to wait long for the slowest
    return Processes(state.process_index, state.num_processes, device or str(state.device), state.wait_for_everyone)
