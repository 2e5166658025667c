"""Iterate over a source's pairs: their order, each process's share of them, and the position in it.

The order is a function of (seed, epoch) alone: the parts are permuted, and then the rows within blocks of
``shuffle_buffer`` rows. The order within a block does not depend on the blocks before it, so a reader resumes by
skipping rows without reading their images. Parts that were read to their end before, in this epoch or an earlier one,
are not even opened, because the position holds their lengths. Threads decode images (Pillow's decoders release the
interpreter's lock) a few rows ahead, and the results are yielded in order: neither the order nor the position depends
on the number of threads.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import random
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from clip_guidance._threads import ordered_map
from clip_guidance.data.decode import clean_captions, decode
from clip_guidance.data.policy import Counters, DecodeResult, Policy
from clip_guidance.data.records import BadRow, Pair, Record, Source


class Pairs:
    """Iterate over a source's pairs epoch by epoch, lazily and in constant memory.

    An iteration goes from the present position to the end of the epoch; the next iteration is the next epoch. An
    iteration that was broken off is continued, and so is one whose state was saved and loaded.

    Each of several processes reads its own share: every n-th part where the number of parts is a multiple of the number
    of processes, else every n-th row, in which case all processes iterate over all rows (but read only their own
    images). The shares may differ by some rows: end an epoch after a number of steps, with :meth:`forever`.

    Args:
        source: Where the rows come from; :func:`~clip_guidance.data.open_pairs` finds it.
        policy: Which rows are bad, and how many may be; by default ``Policy()``.
        shard: (index, count) of this process, such as ``(accelerator.process_index, accelerator.num_processes)``.
        seed: Seed of the order.
        shuffle_buffer: Number of rows that are in memory and shuffled together; 0 keeps the source's own order. A
            single table or tar that is sorted by class needs a buffer larger than a class.
        workers: Number of threads that read and decode; with 0 the calling thread does.
        ahead: Number of images that are read ahead of their use, at least 1; by default two per thread. With as many as
            a batch holds, the next batch is read while the present one is trained on.
        transform: Makes ``Pair.image`` from the image (RGB); called in the threads.
        exclude: Rows of which a caption contains this text ("skin tone") are left out: they are not bad rows, and their
            images are not read.
        quarantine: JSONL file to which each bad row of the first epoch is appended at once; each of several processes
            has its own, ``quarantine-0-of-4.jsonl``.

    Attributes:
        epoch: Number of epochs done.
        row: Number of rows of this epoch done by this process, bad and excluded ones included.
        counters: Counts of this epoch, or of the epoch just ended.
        lengths: Number of rows of each part that was read to its end, by the number of the part, where the source does
            not know it.

    Raises:
        ValueError: ``shard``, ``shuffle_buffer`` or ``workers`` is out of range.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from clip_guidance.data import open_pairs
        >>> folder = Path(tempfile.mkdtemp(), "apple")
        >>> folder.mkdir()
        >>> for number in range(3):
        ...     Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
        >>> pairs = open_pairs(folder.parent, seed=1, shuffle_buffer=16)
        >>> sorted(pair.key for pair in pairs), pairs.epoch
        (['apple/0.png', 'apple/1.png', 'apple/2.png'], 1)
    """

    def __init__(
        self,
        source: Source,
        *,
        policy: Policy | None = None,
        shard: tuple[int, int] = (0, 1),
        seed: int = 0,
        shuffle_buffer: int = 0,
        workers: int = 0,
        ahead: int | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
        exclude: str | None = None,
        quarantine: Path | str | None = None,
    ):
        index, count = shard
        if not 0 <= index < count:
            raise ValueError(f"shard: expected (index, count) with 0 <= index < count, got {shard}")
        if shuffle_buffer < 0 or workers < 0:
            raise ValueError(f"expected shuffle_buffer and workers >= 0, got {shuffle_buffer} and {workers}")
        self.source, self.policy, self.shard = source, policy or Policy(), (index, count)
        self.seed, self.shuffle_buffer, self.workers, self.transform = seed, shuffle_buffer, workers, transform
        self.exclude = exclude or None
        self.ahead = 2 * workers if ahead is None else max(1, ahead)
        self.quarantine = None if quarantine is None else Path(quarantine)
        if self.quarantine is not None and count > 1:
            self.quarantine = self.quarantine.with_stem(f"{self.quarantine.stem}-{index}-of-{count}")
        if self.quarantine is not None:  # a file that cannot be written fails now, and not at the first bad row
            self.quarantine.parent.mkdir(parents=True, exist_ok=True)
            self.quarantine.touch()
        self.epoch = self.row = 0
        self.lengths: dict[int, int] = {}
        self.counters = self._new_counters()

    def __iter__(self) -> Iterator[Pair]:
        """Yield the pairs from here to the end of the epoch.

        Raises:
            TooManyBadRows: More rows are bad than the policy allows, or all are.
        """
        for result in self.results():
            if result.pair is not None:
                yield result.pair
            else:
                self.counters.check_bad_share()
        self.counters.check_bad_share(final=True)

    def forever(self) -> Generator[Pair, None, None]:
        """Yield the pairs of this and all later epochs."""
        while True:
            yield from self

    def results(self) -> Generator[DecodeResult, None, None]:
        """Yield the result of every row, bad ones included, from here to the end of the epoch.

        Excluded rows are not among them, and no share of bad rows ends the iteration.

        Raises:
            RuntimeError: The iteration runs in a worker process of a DataLoader.
        """
        if _in_loader_process():
            raise RuntimeError(
                "a DataLoader's worker processes would each read all pairs; use workers= and num_workers=0"
            )
        if self.row == 0:
            self.counters = self._new_counters()
        for result in self._decoded(self._records(self.epoch, self.row)):
            self.row += 1  # before the yield: a row that was yielded is done
            self.counters.record(result)
            if not result.excluded:
                yield result
        self.epoch, self.row = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last pair that was yielded, as a dict that JSON can hold."""
        lengths = [[part, rows] for part, rows in self.lengths.items()]
        place = {"epoch": self.epoch, "row": self.row, "lengths": lengths}
        return {**self._identity(), **place, "counts": self.counters.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a position: the next iteration begins with the very next pair.

        The number of ``workers`` may differ.

        Raises:
            ValueError: The state belongs to another order: another source, seed, buffer, number of processes or
                ``exclude``.
        """
        own = self._identity()
        if wrong := [name for name in own if state.get(name) != own[name]]:
            found = "; ".join(f"{name} is {own[name]!r} here and {state.get(name)!r} in the state" for name in wrong)
            raise ValueError(f"{self.source.name}: the state is of another order: {found}")
        self.epoch, self.row = state["epoch"], state["row"]
        self.lengths = {part: rows for part, rows in state.get("lengths", [])}
        self.counters = self._new_counters()
        self.counters.load_state_dict(state["counts"])

    def captions(self, limit: int | None = None) -> Iterator[tuple[str, ...]]:
        """Yield the captions of the first ``limit`` rows of the first epoch, without reading images.

        Bad and excluded rows are left out.
        """
        for record in itertools.islice(self._records(0, 0), limit):
            with contextlib.suppress(BadRow):
                if record.problem is not None:
                    continue
                found = clean_captions(record.captions() if callable(record.captions) else record.captions)[0]
                if not (self.exclude and any(self.exclude in caption for caption in found)):
                    yield found

    def _identity(self) -> dict[str, Any]:
        """Return what the order depends on; not the source's name, so that a data set may be moved."""
        parts = hashlib.sha256(repr([(part.name, part.rows) for part in self.source.parts]).encode()).hexdigest()[:16]
        order = {"seed": self.seed, "shuffle_buffer": self.shuffle_buffer, "shard": list(self.shard)}
        return {"parts": parts, **order, "exclude": self.exclude}

    def _new_counters(self) -> Counters:
        return Counters(self.source.name, self.policy, self.quarantine if self.epoch == 0 else None)

    def _records(self, epoch: int, start: int) -> Iterator[Record]:
        """Yield this process's records of an epoch in order, from number ``start`` on."""
        order = list(range(len(self.source.parts)))
        if self.shuffle_buffer:
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
        index, count = self.shard
        if len(order) % count == 0:
            order, index, count = order[index::count], 0, 1
        size = max(1, self.shuffle_buffer)
        block, offset = divmod(start, size)
        own = itertools.islice(self._from(order, index + block * size * count), 0, None, count)
        while rows := list(itertools.islice(own, size)):
            if self.shuffle_buffer:
                random.Random(f"{self.seed}/{epoch}/{block}").shuffle(rows)
            rows = rows[: offset - 1 if offset else None : -1]
            while rows:  # released one by one, so that memory never holds more than a block
                yield rows.pop()
            block, offset = block + 1, 0

    def _from(self, order: list[int], skip: int) -> Iterator[Record]:
        """Yield the records of the parts in this order without the first ``skip``.

        Parts of known length that are skipped are not opened.
        """
        for index in order:
            known = self.source.parts[index].rows
            rows = self.lengths.get(index) if known is None else known
            if rows is not None and rows <= skip:
                skip -= rows
                continue
            read = 0
            for record in self.source.read(index):
                read += 1
                if skip:
                    skip -= 1
                else:
                    yield record
            if known is None:
                self.lengths[index] = read

    def _decoded(self, records: Iterator[Record]) -> Iterator[DecodeResult]:
        """Decode records in order, with at most ``ahead`` of them under way."""
        work = functools.partial(decode, policy=self.policy, transform=self.transform, exclude=self.exclude)
        return ordered_map(work, records, self.workers, self.ahead)


def _in_loader_process() -> bool:
    """Return whether this is a worker process of a torch DataLoader."""
    loader = sys.modules.get("torch.utils.data")
    return loader is not None and loader.get_worker_info() is not None
