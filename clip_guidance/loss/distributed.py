"""Sums and gathers over the processes of a distributed run."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class World:
    """The processes that share a batch: this one alone where torch.distributed is not in use."""

    def __init__(self, process_group: Any = None):
        self.group, used = process_group, dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size(process_group) if used else 1
        self.rank = dist.get_rank(process_group) if used else 0

    def gather(self, x: Tensor) -> Tensor:
        """(n, ...) of every process, as (W n, ...) in the order of ranks; no gradient passes.

        Raises:
            ValueError: the processes have different n.
        """
        if self.size == 1:
            return x
        counts = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(x)], device=x.device), group=self.group)
        if len(found := {int(count) for count in counts}) > 1:
            raise ValueError(
                f"expected as many pairs on every process, got {sorted(found)}: drop the last, short batch"
            )
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts)

    def sum(self, x: Tensor) -> Tensor:
        """Of every process's ``x``."""
        if self.size > 1:
            dist.all_reduce(x, group=self.group)
        return x

    def logsumexp(self, high: Tensor, sums: Tensor) -> Tensor:
        """log Σ exp from each process's maximum and sum of exp(l − maximum)."""
        if self.size > 1:
            highest = high.clone()
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.group)
            high, sums = highest, self.sum(sums * (high - highest).exp())
        return high + sums.log()

    def own_share(self, x: Tensor) -> Tensor:
        """This process's rows of the sum of every process's (W n, ...)."""
        return self.sum(x).chunk(self.size)[self.rank] if self.size > 1 else x
