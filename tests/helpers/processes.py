"""Runs a function on several processes that talk through gloo, as ``accelerate launch`` would."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def spawned(size: int, work: Callable[[int, int], Any]) -> list[Any]:
    """``work(rank, size)`` of every process, which must be importable; what it returns is pickled."""
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_on_each, (size, _free_port(), work, results), nprocs=size)
        return [results[rank] for rank in range(size)]


def _on_each(rank: int, size: int, port: int, work: Callable[[int, int], Any], results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    try:
        torch.set_num_threads(1)
        results[rank] = work(rank, size)
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
