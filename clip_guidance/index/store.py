"""The catalogue of an image index in SQLite: what it knows is what the index holds.

Crash safety is the order of writing. Vectors are appended to their file and fsynced; then one transaction (write-ahead
log, synchronous=FULL) names their rows and so acknowledges them. A kill before the commit leaves rows that nothing
names, and the next writer overwrites them; after the commit nothing is lost. Readers see the state at the start of
their own transaction: rows that this state names are never overwritten, and a compacted file has another name.

What is read was perhaps written by others: values have their types checked, and a vector that does not match its
checksum is named, left out of every answer, and encoded anew when its image is next added.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clip_guidance.index.catalogue import Catalogue
from clip_guidance.index.checksums import NONE, RowChecks, checksums, matches
from clip_guidance.index.entries import Batch
from clip_guidance.index.nearest import nearest
from clip_guidance.index.results import Hit
from clip_guidance.index.rows import Memory
from clip_guidance.index.schema import CHECKSUM, MOVE, PUT
from clip_guidance.index.vectors import ImageIndexError, VectorFile, blocks, short_name
from clip_guidance.index.where import ALL, Condition


class Store(Catalogue):
    """Keep the catalogue and vectors of an index in a folder; see :class:`Catalogue` for the arguments."""

    def __init__(self, folder: Path, meta: Mapping[str, Any] | None, timeout: float = 60.0) -> None:
        self._vectors: VectorFile | None = None
        self._memory, self._memory_of = Memory(), -1  # of the state after so many changes
        self._checks, self._warned = RowChecks(), False
        super().__init__(folder, meta, timeout)

    # Transactions

    @contextmanager
    def reading(self) -> Iterator[np.ndarray]:
        """Read one state of the index, whatever others write meanwhile.

        Yields:
            The vectors (rows, d), some of which belong to no image; which are sound, :meth:`sound` says.
        """
        with self._lock:
            vectors = self._snapshot()
            try:
                yield vectors
            finally:
                self._db.run("COMMIT")

    @contextmanager
    def _one_state(self) -> Iterator[None]:
        """Read one state of the catalogue alone, that of the transaction if there is one."""
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            self._db.run("BEGIN")
            try:
                yield
            finally:
                self._db.run("COMMIT")

    def _snapshot(self) -> np.ndarray:
        while True:
            self._db.run("BEGIN")
            try:
                return self._file().read(self.get("rows"))
            except FileNotFoundError:  # compacted after this transaction began; the next one knows the new file
                self._db.run("ROLLBACK")
                if not (self.folder / self.get("vectors")).exists():
                    missing = f"its vector file {self.get('vectors')} is missing"
                    raise ImageIndexError(f"{short_name(self.folder)}: {missing}") from None
            except BaseException:
                self._db.run("ROLLBACK")
                raise

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write as the only writer, in this process and all others; everything or nothing is kept."""
        with self._lock:
            self._db.run("BEGIN IMMEDIATE")
            try:
                yield
                self._db.run("UPDATE meta SET value = value + 1 WHERE key = 'changes'")
                self._db.run("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.run("ROLLBACK")

    def close(self) -> None:
        """Close the connection; the object is of no use afterwards."""
        with self._lock:
            self._vectors = None
            self._db.close()

    # Reading

    def rows(self, condition: Condition = ALL) -> np.ndarray:
        """Return the rows of images that meet a condition, ascending int64, whether their vectors are sound or not.

        What was read last is remembered until a change.
        """
        with self._one_state():
            changes = self.get("changes")
            if self._memory_of != changes:
                self._memory, self._memory_of = Memory(), changes
            return self._read_rows(condition, self._memory)

    def sound(self, vectors: np.ndarray, condition: Condition = ALL) -> np.ndarray:
        """Return the rows of images that meet a condition and whose vectors match their checksums.

        The first time that some do not, a warning names them.

        Args:
            vectors: As :meth:`reading` yields them, within its block.
            condition: Which images.
        """
        return self.sound_among(vectors, self.rows(condition))

    def sound_among(self, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return those of some rows, ascending int64 (m,), whose vectors match their checksums; see :meth:`sound`."""
        good = self._checks.sound(self._file().path, vectors, rows, self._read_checksums)
        if good.all():
            return rows
        if not self._warned:
            self._warned = True
            damaged = rows[~good]
            (first,) = self.by_rows(damaged[:1])
            some = f"the vectors of {len(damaged)} images, such as {short_name(Path(first.path))}"
            cure = "they are not searched; add these images again"
            warnings.warn(f"{short_name(self.folder)}: {some}, are damaged: {cure}", stacklevel=4)
        return rows[good]

    def damaged(self, condition: Condition = ALL) -> list[str]:
        """Return the paths of the images that meet a condition and whose vectors do not match their checksums."""
        with self.reading() as vectors:
            return [entry.path for entry in self.by_rows(self.damaged_rows(vectors, condition))]

    def damaged_rows(self, vectors: np.ndarray, condition: Condition = ALL) -> np.ndarray:
        """Return the rows that :meth:`sound` leaves out, without a warning."""
        rows = self._read_rows(condition)
        return rows[~self._checks.sound(self._file().path, vectors, rows, self._read_checksums)]

    def search(self, queries: np.ndarray, k: int, condition: Condition = ALL, *, exact: bool = True) -> list[list[Hit]]:
        """Find the best images for each query (q, d), among those that meet a condition; always exact in a folder."""
        if k < 1:
            raise ValueError(f"k: expected at least 1, got {k}")
        self.index_keys(condition)
        with self.reading() as vectors:
            found = nearest(vectors, self.sound(vectors, condition), queries, k)
            return [
                [Hit(entry.path, float(s), entry.metadata) for entry, s in zip(self.by_rows(rows), scores, strict=True)]
                for rows, scores in zip(found.rows, found.scores, strict=True)
            ]

    # Writing

    def apply(self, batch: Batch) -> list[str]:
        """Acknowledge a batch: when this returns, it is on the disk.

        Returns:
            Paths of moved images that another process removed or changed meanwhile; they are not in the index.
        """
        lost = []
        with self.writing():
            if batch.put:
                self._keep_checksums()
                row, file = self.get("rows"), self._file()
                embeds = np.asarray(np.stack(list(batch.embeds)), file.dtype)
                try:
                    file.write(row, embeds)
                except OSError as error:
                    raise ImageIndexError(f"{short_name(file.path)}: cannot be written ({error.strerror})") from error
                sums = checksums(embeds).tolist()
                rows = [{**vars(seen), "row": row + i, "checksum": sums[i]} for i, seen in enumerate(batch.put)]
                self._db.run_many(PUT, rows)
                self._db.run("UPDATE meta SET value = ? WHERE key = 'rows'", (row + len(rows),))
            for number, seen in batch.moved:
                self._db.run("DELETE FROM entries WHERE path = ? AND id != ?", (seen.path, number))
                if not self._db.run(MOVE, {**vars(seen), "id": number}).rowcount:
                    lost.append(seen.path)
        return lost

    def _keep_checksums(self) -> None:
        """Bring an index up to date that was made before there were checksums; within ``writing``.

        It gets those of its sound vectors. Besides, letters of keys were escaped, so that no filter found them.
        """
        if self._has_checksums:
            return
        if not self._find_checksums():  # no other process was quicker
            vectors, rows = self._file().read(self.get("rows")), self._read_rows(ALL)
            self._db.run(CHECKSUM)
            for start, block in blocks(vectors, rows[: np.searchsorted(rows, len(vectors))]):
                part = rows[start : start + len(block)]
                block = block.astype(self._file().dtype)
                good = matches(block, np.full(len(block), NONE))
                pairs = zip(checksums(block)[good].tolist(), part[good].tolist(), strict=True)
                self._db.run_many("UPDATE entries SET checksum = ? WHERE row = ?", pairs)
            for number, metadata in self._fetch("SELECT id, metadata FROM entries WHERE instr(metadata, '\\u')"):
                written = json.dumps(json.loads(metadata), ensure_ascii=False)
                self._db.run("UPDATE entries SET metadata = ? WHERE id = ?", (written, number))
        self._has_checksums = True

    def delete(self, condition: Condition) -> list[str]:
        """Remove the images that meet a condition; return their paths."""
        with self.writing():
            found = self._fetch(f"SELECT path FROM entries WHERE {condition.sql}", condition.parameters)
            self._db.run(f"DELETE FROM entries WHERE {condition.sql}", condition.parameters)
        return [path for (path,) in found]

    def patch(self, condition: Condition, patch: str) -> int:
        """Change the metadata of the images that meet a condition; return their number."""
        sql = f"UPDATE entries SET metadata = json_patch(metadata, ?) WHERE {condition.sql}"
        with self.writing():
            return self._db.run(sql, (patch, *condition.parameters)).rowcount

    def renumber(self, rows: np.ndarray, vectors: str) -> None:
        """Make the vectors of ``rows``, ascending, rows 0, 1, 2, ... of the file ``vectors``; within ``writing``."""
        pairs = ((new, old) for new, old in enumerate(rows.tolist()) if new != old)
        self._db.run_many("UPDATE entries SET row = ? WHERE row = ?", pairs)  # ascending: a new number is free
        self._db.run_many("UPDATE meta SET value = ? WHERE key = ?", [(len(rows), "rows"), (vectors, "vectors")])

    def flush(self) -> None:
        """End a number of changes; in a folder each change is complete in itself."""

    def _file(self) -> VectorFile:
        path = self.folder / self.get("vectors")
        if self._vectors is None or self._vectors.path != path:
            file = VectorFile(path)
            held, expected = (file.dim, file.dtype.name), (self.meta["dim"], self.meta["dtype"])
            if held != expected:
                wanted = f"expected vectors of {expected[0]} numbers of {expected[1]}"
                raise ImageIndexError(f"{short_name(path)}: {wanted}, its head says {held[0]} of {held[1]}")
            self._vectors = file
        return self._vectors
