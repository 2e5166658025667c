"""The order of samples in memory: a function of the seed and the step, with nothing to save."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor


class BatchSizeError(ValueError):
    """There are fewer samples than one batch has."""


def batches(
    count: int, batch_size: int, seed: int, start: int = 0, concepts: Sequence[Hashable] | None = None, run: int = 1
) -> Iterator[Tensor]:
    """Yield endless batches of indices, permuted anew each epoch, without the short last batch.

    Args:
        count: Indices are below this number.
        batch_size: Indices per batch.
        seed: Of the permutations.
        start: Number of the first batch in the same endless sequence.
        concepts: The concept of each sample, for runs; None has none.
        run: Samples of one concept that are kept together where there are as many, so that a batch holds several images
            of a concept; at least 1.

    Yields:
        int64 tensors (batch_size,).

    Raises:
        BatchSizeError: There are fewer samples than one batch has.

    Example:
        >>> endless = batches(count=5, batch_size=2, seed=0)
        >>> [next(endless).tolist() for _ in range(3)] == [
        ...     next(batches(count=5, batch_size=2, seed=0, start=step)).tolist() for step in range(3)
        ... ]
        True
    """
    if batch_size > count:
        raise BatchSizeError(f"batch_size {batch_size} exceeds the {count} samples there are")
    per_epoch = count // batch_size
    epoch, first = divmod(start, per_epoch)
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(count, generator=generator)
        if concepts is not None and run > 1:
            order = in_runs(order, concepts, run, generator)
        for i in range(first, per_epoch):
            yield order[i * batch_size : (i + 1) * batch_size]
        epoch, first = epoch + 1, 0


def in_runs(order: Tensor, concepts: Sequence[Hashable], run: int, generator: torch.Generator) -> Tensor:
    """Permute an order such that samples of one concept come in runs.

    Args:
        order: int64 (n,), a permutation of n samples.
        concepts: The concept of each sample.
        run: Length of the runs; what is left of a concept makes a shorter one.
        generator: Draws the order of the runs.

    Returns:
        int64 (n,), a permutation of the same samples.

    Example:
        >>> order = in_runs(torch.arange(6), "abcabc", 2, torch.Generator().manual_seed(0))
        >>> sorted(order.view(3, 2).tolist())
        [[0, 3], [1, 4], [2, 5]]
    """
    of_concept: dict[Hashable, list[int]] = {}
    for sample in order.tolist():
        of_concept.setdefault(concepts[sample], []).append(sample)
    runs = [samples[i : i + run] for samples in of_concept.values() for i in range(0, len(samples), run)]
    places = torch.randperm(len(runs), generator=generator).tolist()
    return torch.tensor([sample for place in places for sample in runs[place]])


class SampleOrder:
    """The indices of one process in the batch of a step.

    It is cheap when asked in order, as ``fit`` does.

    The shares of all processes, one after the other, are the batch of one process with the global batch size.

    Args:
        count: Number of samples.
        batch_size: Samples per process and step.
        seed: Of the permutations.
        accelerator: Tells how many processes there are, and which one this is.
        concepts: The concept of each sample, and
        run: how many samples of one are kept together; see :func:`batches`.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        accelerator: Accelerator,
        concepts: Sequence[Hashable] | None = None,
        run: int = 1,
    ):
        self.runs = (concepts, run)
        self.count, self.global_batch_size, self.seed = count, batch_size * accelerator.num_processes, seed
        self.first = batch_size * accelerator.process_index  # position of this share in the batch
        self.share = slice(self.first, self.first + batch_size)
        self.next_step, self.batches = -1, batches(count, self.global_batch_size, seed, 0, *self.runs)

    def __call__(self, step: int) -> Tensor:
        if step != self.next_step:
            self.batches = batches(self.count, self.global_batch_size, self.seed, step, *self.runs)
        self.next_step = step + 1
        return next(self.batches)[self.share]
