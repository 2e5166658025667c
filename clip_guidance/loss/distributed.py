"""Sums and gathers over the processes of a distributed run."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class ProcessGroup:
    """The processes that share a batch.

    Where ``torch.distributed`` is not initialised, this process is the only one.

    Args:
        process_group: A group of ``torch.distributed``; the default group where not given.

    Attributes:
        size: Number W of processes.
        rank: Number of this process, in [0, W).

    Example:
        >>> import torch
        >>> from clip_guidance.loss import ProcessGroup
        >>> group = ProcessGroup()
        >>> group.size, group.rank, group.gather(torch.ones(2, 3)).shape
        (1, 0, torch.Size([2, 3]))
    """

    def __init__(self, process_group: Any = None):
        self.process_group, used = process_group, dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size(process_group) if used else 1
        self.rank = dist.get_rank(process_group) if used else 0

    def gather(self, x: Tensor) -> Tensor:
        """Gather (n, ...) of every process as (W n, ...) in the order of ranks, without gradients.

        Raises:
            ValueError: The processes have different n.
        """
        if self.size == 1:
            return x
        counts = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(x)], device=x.device), group=self.process_group)
        if len(found := {int(count) for count in counts}) > 1:
            raise ValueError(
                f"expected as many pairs on every process, got {sorted(found)}: drop the last, short batch"
            )
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.process_group)
        return torch.cat(parts)

    def sum(self, x: Tensor) -> Tensor:
        """Sum ``x`` over the processes, in place where there are several."""
        if self.size > 1:
            dist.all_reduce(x, group=self.process_group)
        return x

    def logsumexp(self, maximum: Tensor, sums: Tensor) -> Tensor:
        """Compute log Σ exp(l) over the processes.

        Args:
            maximum: The maximum of this process's l.
            sums: The sum of exp(l − maximum) on this process.
        """
        if self.size > 1:
            highest = maximum.clone()
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.process_group)
            maximum, sums = highest, self.sum(sums * (maximum - highest).exp())
        return maximum + sums.log()

    def own_rows(self, x: Tensor) -> Tensor:
        """Sum (W n, ...) over the processes and return the n rows of this process."""
        return self.sum(x).chunk(self.size)[self.rank] if self.size > 1 else x
