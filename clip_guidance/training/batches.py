"""The batches of a training run: of images in memory, or of a stream of any length.

The caption drawn for a pair, and whether its image is mirrored, depend on (seed, step, position in the global batch)
alone. The order of images in memory is a function of (seed, step); that of a stream is a function of (seed, epoch), and
the position in the stream is saved with each checkpoint. Either way a resumed run continues with the very next batch.
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
from clip_guidance.data.dataset import PHRASES, CaptionedImages, Row, caption, keywords_only, square
from clip_guidance.training.composites import Composites, joined
from clip_guidance.training.order import BatchSizeError, SampleOrder

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """The pairs of one process in one step.

    Attributes:
        images: (B, 3, H, W) in [0, 1]; or in their place their embeddings (B, d).
        captions: One for each image.
        names: The concept of each image: its name, both of a composite, or the first caption where it has no name.
        described: Which pairs these are and what was drawn for them, ready for JSON.
    """

    images: Tensor
    captions: list[str]
    names: list[str]
    described: dict[str, Any]


class Batches(Protocol):
    """The batches of a run by the number of the step, asked for in order."""

    global_batch_size: int

    def __call__(self, step: int) -> Batch:
        """Return this process's share of the batch of a step."""

    def describe(self, step: int) -> dict[str, Any]:
        """Describe the pairs of the batch of a step, ready for JSON."""

    def close(self) -> None:
        """End the threads that read, if there are any."""


class Prefetcher(Generic[T]):
    """What the next step needs, made in a thread while the present step is computed.

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
    """The :class:`Batches` of images in memory.

    Args:
        data: The images and their captions.
        order: The indices of each batch.
        seed: Of the draws of captions and mirroring.
        random_flip: Mirror each image with probability 1/2, where its row says that it may be.
        embeds: (N, d), used in place of the images.
        keyword_share: Of the captions that are keywords without the name, in [0, 1].
        composite_share: Of the images that become composites with another one, in [0, 1]; the class
            :class:`~clip_guidance.training.composites.Composites` draws them.
    """

    def __init__(
        self,
        data: CaptionedImages,
        order: SampleOrder,
        seed: int,
        random_flip: bool = False,
        embeds: Tensor | None = None,
        keyword_share: float = 0.0,
        composite_share: float = 0.0,
    ):
        self.data, self.order, self.seed, self.random_flip, self.embeds = data, order, seed, random_flip, embeds
        self.keyword_share, self.composites = keyword_share, Composites(data.rows, composite_share)
        self.global_batch_size = order.global_batch_size

    def __call__(self, step: int) -> Batch:
        indices = self.order(step).tolist()
        rows = [self.data.rows[i] for i in indices]
        seed, first = f"{self.seed}-{step}", self.order.first
        captions, mirrored = draw(rows, seed, first, self.random_flip, self.keyword_share)
        images = _mirrored(self.data.images[indices], mirrored) if self.embeds is None else self.embeds[indices]
        names, partners = [row.name for row in rows], {}
        for place, index in enumerate(indices if self.composites.share else ()):
            drawn = self.composites.draw(index, seed, first + place)
            if drawn is not None:
                captions[place], names[place], partners[place] = drawn.caption, drawn.name, drawn.partner
                second = self.data.images[drawn.partner].float() / 255
                images[place] = joined(images[place], second, drawn.stacked)
        described = {"indices": indices, "captions": captions, "mirrored": mirrored, "partners": partners}
        return Batch(images, captions, names, described)

    def describe(self, step: int) -> dict[str, Any]:
        """Describe the pairs of the batch of a step, ready for JSON."""
        return self(step).described

    def close(self) -> None:
        """Do nothing: images in memory need no threads."""


class StreamedBatches:
    """The :class:`Batches` of a stream, which goes forward only.

    ``fit`` saves and loads the position in the stream. The object holds the rows of the reader's shuffle buffer, the
    images that were read ahead, and one batch.

    Args:
        pairs: The reader of this process, with a :class:`ToSquare` as its ``transform``.
        batch_size: Pairs per process and step.
        seed: Of the draws of captions and mirroring.
        accelerator: Tells how many processes there are, and which one this is.
        random_flip: Mirror each image with probability 1/2, where its row says that it may be.

    Raises:
        BatchSizeError: When a batch is asked for: this process has fewer pairs than one batch has.
    """

    def __init__(self, pairs: Pairs, batch_size: int, seed: int, accelerator: Accelerator, random_flip: bool = False):
        self.pairs, self.batch_size, self.seed, self.random_flip = pairs, batch_size, seed, random_flip
        self.global_batch_size = batch_size * accelerator.num_processes
        self.first = batch_size * accelerator.process_index
        self.next_step, self.stream = 0, pairs.forever()
        self.described: dict[str, Any] = {}

    def __call__(self, step: int) -> Batch:
        if step != self.next_step:
            raise ValueError(f"a stream goes forward: expected step {self.next_step}, was asked for {step}")
        found = self._next_pairs()
        self.next_step = step + 1
        rows = [Row(pair.captions[0], "", (), pair.captions) for pair in found]
        captions, mirrored = draw(rows, f"{self.seed}-{step}", self.first, self.random_flip)
        self.described = {"pairs": [f"{pair.origin}: {pair.key}" for pair in found], "captions": captions}
        self.described["mirrored"] = mirrored
        images = _mirrored(torch.stack([pair.image for pair in found]), mirrored)
        return Batch(images, captions, [row.name for row in rows], self.described)

    def _next_pairs(self) -> list[Pair]:
        """Read the pairs of a batch; an epoch is no shorter than a batch, so that none is there twice."""
        found: list[Pair] = []
        start = 0 if self.pairs.row == 0 else None  # where in the batch the present epoch began
        while len(found) < self.batch_size:
            epoch = self.pairs.epoch
            pair = next(self.stream)
            if self.pairs.epoch != epoch:
                if start is not None:
                    have = len(found) - start
                    raise BatchSizeError(f"batch_size {self.batch_size} exceeds the {have} samples there are")
                start = len(found)
            found.append(pair)
        return found

    def describe(self, step: int) -> dict[str, Any]:
        """Describe the pairs of the last batch, ready for JSON, whatever the step."""
        return self.described

    def close(self) -> None:
        """End the threads that read; the next batch opens the stream again at its position."""
        self.stream.close()
        self.stream = self.pairs.forever()

    def state_dict(self) -> dict[str, Any]:
        """Return the position behind the last batch, ready for JSON."""
        return {"step": self.next_step, **self.pairs.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the batch that the state was taken after.

        Raises:
            ValueError: The state is of another stream, order or number of processes; says what differs.
        """
        self.close()
        self.pairs.load_state_dict(state)
        self.next_step = state["step"]


@dataclass(frozen=True)
class ToSquare:
    """The ``Pairs.transform`` of training, which makes uint8 (3, size, size) of an image."""

    size: int

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.tensor(square(image, self.size)).permute(2, 0, 1).contiguous()


def draw(
    rows: Sequence[Row], seed: str, first: int, random_flip: bool, keyword_share: float = 0.0
) -> tuple[list[str], list[bool]]:
    """Draw captions and whether to mirror; row i is number ``first + i`` of the global batch."""
    draws = [random.Random(f"{seed}-{first + i}") for i in range(len(rows))]
    phrases = PHRASES
    if keyword_share:
        phrases = (*((weight * (1 - keyword_share), make) for weight, make in PHRASES), (keyword_share, keywords_only))
    captions = [caption(row, rng, phrases) for row, rng in zip(rows, draws, strict=True)]
    return captions, [random_flip and row.mirrors and rng.random() < 0.5 for row, rng in zip(rows, draws, strict=True)]


def _mirrored(images: Tensor, mirrored: list[bool]) -> Tensor:
    """Convert uint8 (B, 3, H, W) to [0, 1], and mirror the marked images."""
    chosen, marks = images.float() / 255, torch.tensor(mirrored)
    return torch.where(marks[:, None, None, None], chosen.flip(-1), chosen)
