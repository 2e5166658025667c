"""The batches of a training run: of images in memory, or of a stream of any length.

What is drawn for a pair, its caption and whether it is mirrored, depends on (seed, step, place in the global batch)
alone. The order of images in memory is a function of (seed, step); a stream's is one of (seed, epoch), and its place
is saved with each checkpoint. Either way a resumed run goes on with the very next batch.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from clip_guidance._threads import ordered_map
from clip_guidance.data import Pair, Pairs
from clip_guidance.data.dataset import CaptionedImages, Row, caption, square

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """This process's pairs of one step.

    Attributes:
        images: (B, 3, H, W) in [0, 1]; or what stands for them, their embeddings (B, d).
        captions: one for each.
        described: which pairs these are and what was drawn for them, ready for JSON.
    """

    images: Tensor
    captions: list[str]
    described: dict[str, Any]


class Batches(Protocol):
    """Batch number ``step`` of a run; asked for in order."""

    global_batch_size: int

    def __call__(self, step: int) -> Batch:
        """This process's share of it."""

    def describe(self, step: int) -> dict[str, Any]:
        """Which pairs it had, ready for JSON."""

    def close(self) -> None:
        """Ends the threads that read, if there are any."""


def batches(count: int, batch_size: int, seed: int, start: int = 0) -> Iterator[Tensor]:
    """Endless batches of indices below ``count``: a new permutation each epoch, the short last batch dropped.

    Yields:
        int64 tensors (batch_size,), beginning with batch number ``start`` of the same endless sequence.
    """
    if batch_size > count:
        raise ValueError(f"batch_size {batch_size} exceeds the {count} samples there are")
    per_epoch = count // batch_size
    epoch, first = divmod(start, per_epoch)
    while True:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        for i in range(first, per_epoch):
            yield order[i * batch_size : (i + 1) * batch_size]
        epoch, first = epoch + 1, 0


class SampleOrder:
    """This process's share of the indices of batch number ``step``; free when asked in order, as ``fit`` does.

    The shares of all processes, one after the other, are the batch of one process with the global batch size.

    Args:
        count: number of samples.
        batch_size: samples a process and step.
        seed: of the permutations.
        accelerator: how many processes there are, and which one this is.
    """

    def __init__(self, count: int, batch_size: int, seed: int, accelerator: Accelerator):
        self.count, self.global_batch_size, self.seed = count, batch_size * accelerator.num_processes, seed
        self.first = batch_size * accelerator.process_index  # place of this share in the batch
        self.share = slice(self.first, self.first + batch_size)
        self.next_step, self.batches = -1, batches(count, self.global_batch_size, seed)

    def __call__(self, step: int) -> Tensor:
        if step != self.next_step:
            self.batches = batches(self.count, self.global_batch_size, self.seed, start=step)
        self.next_step = step + 1
        return next(self.batches)[self.share]


class Prefetcher(Generic[T]):
    """Make what the next step needs in a thread while the present step is computed.

    Prefetching helps where the steps are asked for in order, as ``fit`` does; any other step is made anew.

    Args:
        make: From a step's number to what the step needs. Called for one step at a time; must not draw from torch's
            global random state.
    """

    def __init__(self, make: Callable[[int], T]):
        self.make = make
        self.next_step = -1
        self.made: Iterator[T] = iter(())

    def __call__(self, step: int) -> T:
        if step != self.next_step:
            self.made = ordered_map(self.make, itertools.count(step), threads=1, ahead=2)
        self.next_step = -1  # where making the step fails, the iterator has ended
        made = next(self.made)
        self.next_step = step + 1
        return made


class MemoryBatches:
    """Of images in memory; :class:`Batches`.

    Args:
        data: the images and what they show.
        order: which of them a batch has.
        seed: of captions and mirroring.
        mirror: mirror half of the images that show the same when mirrored.
        embeds: (N, d), what stands for the images.
    """

    def __init__(
        self, data: CaptionedImages, order: SampleOrder, seed: int, mirror: bool = False, embeds: Tensor | None = None
    ):
        self.data, self.order, self.seed, self.mirror, self.embeds = data, order, seed, mirror, embeds
        self.global_batch_size = order.global_batch_size

    def __call__(self, step: int) -> Batch:
        indices = self.order(step).tolist()
        rows = [self.data.rows[i] for i in indices]
        captions, mirrored = draw(rows, f"{self.seed}-{step}", self.order.first, self.mirror)
        images = _mirrored(self.data.images[indices], mirrored) if self.embeds is None else self.embeds[indices]
        return Batch(images, captions, {"indices": indices, "captions": captions, "mirrored": mirrored})

    def describe(self, step: int) -> dict[str, Any]:
        """As :class:`Batches` says."""
        return self(step).described

    def close(self) -> None:
        """Nothing is open."""


class StreamedBatches:
    """Of a stream, which goes forward only; :class:`Batches` that ``fit`` saves and loads the place of.

    Held are the rows of the reader's shuffle buffer, the images it has read ahead, and one batch.

    Args:
        pairs: the reader of this process, its ``transform`` a :class:`ToSquare`.
        batch_size: pairs a process and step.
        seed: of captions and mirroring.
        accelerator: how many processes there are, and which one this is.
        mirror: mirror half of the images that show the same when mirrored.
    """

    def __init__(self, pairs: Pairs, batch_size: int, seed: int, accelerator: Accelerator, mirror: bool = False):
        self.pairs, self.batch_size, self.seed, self.mirror = pairs, batch_size, seed, mirror
        self.global_batch_size = batch_size * accelerator.num_processes
        self.first = batch_size * accelerator.process_index
        self.next_step, self.stream = 0, pairs.forever()
        self.described: dict[str, Any] = {}

    def __call__(self, step: int) -> Batch:
        if step != self.next_step:
            raise ValueError(f"a stream goes forward: expected step {self.next_step}, was asked for {step}")
        found: list[Pair] = list(itertools.islice(self.stream, self.batch_size))
        self.next_step = step + 1
        rows = [Row(pair.captions[0], "", (), pair.captions) for pair in found]
        captions, mirrored = draw(rows, f"{self.seed}-{step}", self.first, self.mirror)
        self.described = {"pairs": [f"{pair.origin}: {pair.key}" for pair in found], "captions": captions}
        self.described["mirrored"] = mirrored
        return Batch(_mirrored(torch.stack([pair.image for pair in found]), mirrored), captions, self.described)

    def describe(self, step: int) -> dict[str, Any]:
        """As :class:`Batches` says; of the last step alone."""
        return self.described

    def close(self) -> None:
        """As :class:`Batches` says; the place stays, and the next batch opens the stream anew."""
        self.stream.close()
        self.stream = self.pairs.forever()

    def state_dict(self) -> dict[str, Any]:
        """The place behind the last batch, ready for JSON."""
        return {"step": self.next_step, **self.pairs.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on behind the batch that the state was taken after.

        Raises:
            ValueError: the state is of another stream, order or number of processes; says what differs.
        """
        self.close()
        self.pairs.load_state_dict(state)
        self.next_step = state["step"]


@dataclass(frozen=True)
class ToSquare:
    """An image to uint8 (3, size, size), as those in memory are; for ``Pairs.transform``."""

    size: int

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.tensor(square(image, self.size)).permute(2, 0, 1).contiguous()


def draw(rows: Sequence[Row], seed: str, first: int, mirror: bool) -> tuple[list[str], list[bool]]:
    """A caption for each row, and whether it is mirrored; row i has place ``first + i`` in the whole batch."""
    draws = [random.Random(f"{seed}-{first + i}") for i in range(len(rows))]
    captions = [caption(row, rng) for row, rng in zip(rows, draws, strict=True)]
    return captions, [mirror and row.mirrors and rng.random() < 0.5 for row, rng in zip(rows, draws, strict=True)]


def _mirrored(images: Tensor, mirrored: list[bool]) -> Tensor:
    """uint8 (B, 3, H, W) to [0, 1], those marked mirrored."""
    chosen, marks = images.float() / 255, torch.tensor(mirrored)
    return torch.where(marks[:, None, None, None], chosen.flip(-1), chosen)
