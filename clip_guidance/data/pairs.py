"""The order of a source's pairs, each process's share of them, and the position in it.

The order is a function of (seed, epoch) alone: the parts are permuted, then the rows within blocks of
``shuffle_buffer`` rows. A block can be found without drawing those before it, so a reader resumes by skipping rows,
whose images are not even read; parts that were read to their end before, in this epoch or an earlier one, are not
opened, since the position holds their lengths. Images are decoded by threads (Pillow's decoders release the
interpreter's lock) a few rows ahead and handed out in order, so neither the order nor a position depends on how many
threads there are.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from clip_guidance.data.decode import clean_captions, decode
from clip_guidance.data.policy import Ledger, Outcome, Policy
from clip_guidance.data.records import BadRow, Pair, Record, Source


class Pairs:
    """A source's pairs, epoch by epoch, lazily and in constant memory.

    Iterating goes from the present position to the end of the epoch; iterating again goes on with the next epoch. One
    that was broken off is continued, as is one whose state was saved and loaded.

    With several processes each reads its own share: every n-th part where their number is a multiple of the number of
    processes, else every n-th row, in which case all processes go through all rows (but read only their images). The
    shares may differ by some rows: end an epoch by a number of steps, over :meth:`forever`.

    Args:
        source: where they come from.
        policy: what becomes of bad rows.
        shard: (index, count) of this process, such as ``(accelerator.process_index, accelerator.num_processes)``.
        seed: of the order.
        shuffle_buffer: rows held and shuffled together; 0 keeps the source's own order. A single table or tar that
            is sorted by what it shows needs a buffer larger than a class.
        workers: threads that read and decode; 0 does it in the calling thread.
        ahead: images that they have read or are reading before it is their turn; two a thread where not given. With
            as many as a batch, the next batch is read while one is trained on.
        transform: given the image (RGB), makes ``Pair.image``; runs in the threads.
        exclude: rows of which a caption contains this are left out ("skin tone"): they are no bad rows, and their
            images are not read.
        quarantine: a JSONL file to which the bad rows of the first epoch are appended, each as it is met; with several
            processes each has its own, ``quarantine-0-of-4.jsonl``.

    Attributes:
        epoch: number of epochs done.
        row: rows of this epoch done by this process, bad and excluded ones included.
        ledger: counts of this epoch, or of the one just ended.
        lengths: rows of the parts that were read to their end, by the number of the part, where the source does not
            know them itself.
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
        if self.quarantine is not None:  # fails now rather than at the first bad row
            self.quarantine.parent.mkdir(parents=True, exist_ok=True)
            self.quarantine.touch()
        self.epoch = self.row = 0
        self.lengths: dict[int, int] = {}
        self.ledger = self._new_ledger()

    def __iter__(self) -> Iterator[Pair]:
        """The pairs from here to the end of the epoch.

        Raises:
            TooManyBadRows: more rows are bad than the policy allows, or all are.
        """
        for outcome in self.outcomes():
            if outcome.pair is not None:
                yield outcome.pair
            else:
                self.ledger.judge()
        self.ledger.judge(final=True)

    def forever(self) -> Generator[Pair, None, None]:
        """The pairs of this and all later epochs."""
        while True:
            yield from self

    def outcomes(self) -> Generator[Outcome, None, None]:
        """What becomes of every row, bad ones included, from here to the end of the epoch; no share is judged.

        Excluded rows are not among them.
        """
        if _in_loader_process():
            raise RuntimeError(
                "a DataLoader's worker processes would each read all pairs; use workers= and num_workers=0"
            )
        if self.row == 0:
            self.ledger = self._new_ledger()
        for outcome in self._decoded(self._records(self.epoch, self.row)):
            self.row += 1  # before the yield: what was handed out is done
            self.ledger.record(outcome)
            if not outcome.excluded:
                yield outcome
        self.epoch, self.row = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """The position after the pair handed out last, ready for JSON."""
        lengths = [[part, rows] for part, rows in self.lengths.items()]
        place = {"epoch": self.epoch, "row": self.row, "lengths": lengths}
        return {**self._identity(), **place, "counts": self.ledger.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with the very next pair when iterated next; the number of ``workers`` may differ.

        Raises:
            ValueError: the state is of another order, that is another source, seed, buffer, number of processes or
                ``exclude``.
        """
        own = self._identity()
        if wrong := [name for name in own if state.get(name) != own[name]]:
            found = "; ".join(f"{name} is {own[name]!r} here and {state.get(name)!r} in the state" for name in wrong)
            raise ValueError(f"{self.source.name}: the state is of another order: {found}")
        self.epoch, self.row = state["epoch"], state["row"]
        self.lengths = {part: rows for part, rows in state.get("lengths", [])}
        self.ledger = self._new_ledger()
        self.ledger.load_state_dict(state["counts"])

    def captions(self, limit: int | None = None) -> Iterator[tuple[str, ...]]:
        """The captions of the first ``limit`` rows of the first epoch, without their images; bad ones left out.

        Excluded ones are too.
        """
        for record in itertools.islice(self._records(0, 0), limit):
            with contextlib.suppress(BadRow):
                if record.problem is not None:
                    continue
                found = clean_captions(record.captions() if callable(record.captions) else record.captions)[0]
                if not (self.exclude and any(self.exclude in caption for caption in found)):
                    yield found

    def _identity(self) -> dict[str, Any]:
        """What the order depends on; not the source's name, so that a data set may be moved."""
        parts = hashlib.sha256(repr([(part.name, part.rows) for part in self.source.parts]).encode()).hexdigest()[:16]
        order = {"seed": self.seed, "shuffle_buffer": self.shuffle_buffer, "shard": list(self.shard)}
        return {"parts": parts, **order, "exclude": self.exclude}

    def _new_ledger(self) -> Ledger:
        return Ledger(self.source.name, self.policy, self.quarantine if self.epoch == 0 else None)

    def _records(self, epoch: int, start: int) -> Iterator[Record]:
        """This process's records of an epoch in order, from number ``start`` on."""
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
            while rows:  # let go one by one: at no time is more than a block held
                yield rows.pop()
            block, offset = block + 1, 0

    def _from(self, order: list[int], skip: int) -> Iterator[Record]:
        """The records of the parts in this order without the first ``skip``; parts of known length are not opened."""
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

    def _decoded(self, records: Iterator[Record]) -> Iterator[Outcome]:
        """Decodes in order, with at most ``ahead`` records under way."""
        if not self.workers:
            yield from (decode(record, self.policy, self.transform, self.exclude) for record in records)
            return
        pending: deque[Future[Outcome]] = deque()
        pool = ThreadPoolExecutor(self.workers)
        try:
            for record in records:
                pending.append(pool.submit(decode, record, self.policy, self.transform, self.exclude))
                if len(pending) == self.ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # also when the iteration is broken off
            pool.shutdown(cancel_futures=True)


def _in_loader_process() -> bool:
    """Whether this is a worker process of a torch DataLoader."""
    loader = sys.modules.get("torch.utils.data")
    return loader is not None and loader.get_worker_info() is not None
