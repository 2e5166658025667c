"""A scoring job: items are read, prepared in threads, encoded block by block, acknowledged, written.

A block, ``batch_size`` consecutive items, is computed and acknowledged as a whole. Processes take blocks in turn. A
block is the same whoever computes it, so a run that was killed and resumed, and a run on several processes, give the
numbers of a run that was left alone.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clip_guidance._threads import ordered_map
from clip_guidance.clip.embed_cache import EmbedCache
from clip_guidance.metrics.job.items import ScoreItem
from clip_guidance.metrics.job.judge import Judge, Scored
from clip_guidance.metrics.job.output import is_torn, read_scores, write_scores
from clip_guidance.metrics.job.prepare import PreparedItem, Preparer, in_blocks, own_blocks
from clip_guidance.metrics.job.processes import LostProcessError, Processes
from clip_guidance.metrics.job.store import Failure, ScoreRow, ScoresError, ScoreStore


@dataclass(frozen=True)
class Options:
    """Say how to work.

    Attributes:
        batch_size: Images encoded and acknowledged at a time.
        threads: Number of threads that decode.
        draft: Whether large JPEG images are decoded as drafts.
        cache: Cache of embeddings, kept from run to run; None for no cache.
    """

    batch_size: int = 16
    threads: int = min(8, os.cpu_count() or 1)
    draft: bool = False
    cache: EmbedCache | None = None


@dataclass(frozen=True)
class Progress:
    """Report what became of a block.

    Attributes:
        items: Number of items of the block.
        repeated: Number of its rows that were there already, from a pair given twice.
        failures: Images that failed.
    """

    items: int
    repeated: int
    failures: list[Failure]


class Job:
    """Keep the files of a run on an output.

    Args:
        output: Path of the file of scores to write.
        processes: The processes that take part.
    """

    def __init__(self, output: Path, processes: Processes) -> None:
        self.output, self.processes = output, processes
        self.base = output.with_name(output.name + ".partial")
        self.own = self._shard(processes.rank)
        self.given = ""  # digest of the items, once all were read

    def _shard(self, rank: int) -> Path:
        return self.base.with_name(f"{self.base.name}-{rank}")

    def _shards(self) -> list[Path]:
        prefix = self.base.name + "-"
        found = (path for path in self.base.parent.iterdir() if path.name.startswith(prefix))
        return sorted(path for path in found if path.name.removeprefix(prefix).isdecimal())

    def check(self, resume: bool) -> None:
        """Check that a run may begin; under the lock, since the files may be those of a run that goes on.

        Raises:
            ScoresError: There are scores already and ``resume`` is not set.
        """
        if self.processes.rank or resume:  # the first process may have made its files already
            return
        if self.output.exists():
            raise ScoresError(f"--output {self.output} exists; scores are never overwritten: --resume adds to them")
        if self.base.exists() or self._shards():
            what = f"{self.base}: scores of a run that was cut short; --resume goes on with it"
            raise ScoresError(f"{what}; to begin anew, delete {self.base.name}*")

    def locked(self) -> AbstractContextManager[None]:
        """Hold a lock in the first process, so that no second run disturbs this one.

        Raises:
            ScoresError: On entering the block, if another run holds the lock.
        """
        lock = self.output.with_name(self.output.name + ".lock")
        return self.processes.locked(lock, ScoresError(f"{self.output}: another run is writing it"))

    def begin(self, judges: Sequence[Judge]) -> None:
        """Collect, in the first process, what earlier runs did; the others wait for it."""
        if self.processes.rank == 0:
            with ScoreStore(self.base) as base:
                for shard in self._shards():
                    base.absorb(shard)
                if self.output.exists():
                    base.add(read_scores(self.output))
                base.begin(definition.record for judge in judges for definition in judge.definitions)
        self.processes.wait()

    def finish(self) -> None:
        """Take over, in the first process, what all processes did.

        Raises:
            ScoresError: A process ended early or vanished, or the processes were given different items.
        """
        kept = f"what was scored is kept beside {self.output}: start all processes again with --resume"
        try:
            self.processes.wait()
            given = self.processes.gather(self.given)
        except LostProcessError as error:
            raise ScoresError(f"{error}; {kept}") from error
        if len(set(given) - {""}) > 1:
            raise ScoresError(
                "the processes found different images: all machines must see the same, and none may come meanwhile; "
                + kept
            )
        if self.processes.rank == 0:
            with ScoreStore(self.base) as base:
                for shard in self._shards():
                    base.absorb(shard)

    def write(self) -> None:
        """Write the output, in the first process; afterwards the files of the run are not needed any more."""
        with ScoreStore(self.base) as base:
            write_scores(self.output, base.rows(), list(base.records().values()), base.failures())

    def clear(self) -> None:
        """Delete the files of the run."""
        self.base.unlink(missing_ok=True)

    def torn(self) -> bool:
        """Say whether the earlier output lost the end of its last line, whose image is scored again."""
        return self.output.exists() and is_torn(self.output)


def score_items(items: Iterable[ScoreItem], judges: Sequence[Judge], job: Job, options: Options) -> Iterator[Progress]:
    """Score this process's share of the items.

    Args:
        items: All items; the same for each process.
        judges: Judges that score them, side by side: an image is read once.
        job: The job, begun.
        options: How to work.

    Yields:
        The progress of each block when the block is acknowledged: a kill afterwards does not lose it.

    Raises:
        ScoresError: The scores cannot be kept (a full disk).
    """
    processes = job.processes
    with ScoreStore(job.base, read_only=True) as known, ScoreStore(job.own) as own:
        mine = own_blocks(_digested(items, job), options.batch_size, processes.rank, processes.count)
        preparer = Preparer(judges, known, options.cache, options.draft)
        prepared = ordered_map(preparer, mine, options.threads, options.threads + 2 * options.batch_size)
        for block in in_blocks(prepared, options.batch_size):
            failures = {each.item.position: each.failure for each in block if each.failure is not None}
            rows = _rows([each for each in block if each.failure is None], judges, options.cache, failures)
            failed = [Failure(each.item.position, each.item.name, reason) for each, reason in _in(block, failures)]
            yield Progress(len(block), len(rows) - own.put(rows, failed), failed)


def _digested(items: Iterable[ScoreItem], job: Job) -> Iterator[ScoreItem]:
    """Yield the items, and then tell the job a digest of them all, which is the same in each process."""
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        digest.update(repr((item.name, item.prompt)).encode())
        yield item
    job.given = digest.hexdigest()


def _in(block: list[PreparedItem], failures: dict[int, str]) -> Iterator[tuple[PreparedItem, str]]:
    return ((each, failures[each.item.position]) for each in block if each.item.position in failures)


def _rows(
    block: list[PreparedItem], judges: Sequence[Judge], cache: EmbedCache | None, failures: dict[int, str]
) -> list[ScoreRow]:
    """Make the rows of a block, image by image; an image with a score that is not finite joins the failures."""
    rows: dict[int, list[ScoreRow]] = {each.item.position: [] for each in block}
    for place, judge in enumerate(judges):
        embeds = _embeds(block, judge, place, cache)
        for definition in judge.definitions:
            new = [each for each in block if definition.id not in each.known]
            image_embeds = [embeds[each.item.position] for each in new]
            prompts = [each.prompt for each in new]
            scored = judge.score(definition, torch.stack(image_embeds), prompts) if new else []
            found = {each.item.position: one for each, one in zip(new, scored, strict=True)}
            for each in block:
                position, one = each.item.position, found.get(each.item.position)
                guided = judge.fingerprint in each.guides
                rows[position].append(_row(each, definition.id, one, guided))
                if not math.isfinite(rows[position][-1].score):
                    failures[position] = f"the score {definition.record['definition']} of it is not finite"
    return [row for position, of_image in rows.items() if position not in failures for row in of_image]


def _embeds(block: list[PreparedItem], judge: Judge, place: int, cache: EmbedCache | None) -> dict[int, Tensor]:
    """Return the vectors of the images that the judge must look at, by position: encoded, or from the cache."""
    encode = [each for each in block if place in each.pixels]
    embeds = {each.item.position: each.embeds[place].to(judge.device) for each in block if place in each.embeds}
    if encode:
        encoded = judge.encode([each.pixels[place] for each in encode])
        embeds |= {each.item.position: embed for each, embed in zip(encode, encoded, strict=True)}
        if cache is not None and judge.embed_dim is not None:
            cache.put(judge.key, {each.hash: embed for each, embed in zip(encode, encoded.cpu(), strict=True)})
    if embeds:
        judge.domain.add(torch.stack(list(embeds.values())))
        judge.domain.texts.add(each.prompt for each in block if each.prompt)
    return embeds


def _row(each: PreparedItem, record: str, scored: Scored | None, guided: bool) -> ScoreRow:
    if scored is None:  # known from an earlier run
        row = each.known[record]
        return ScoreRow(**{**vars(row), "position": each.item.position})
    return ScoreRow(
        each.item.name, each.prompt, record, each.item.position, each.hash, scored.score, guided, scored.tokens,
        scored.truncated,
    )  # fmt: skip
