"""The catalogue of an image index in SQLite: what it knows is what the index holds.

Crash safety is the order of writing. Vectors are appended to their file and fsynced; then one transaction (write-ahead
log, synchronous=FULL) names their rows and so acknowledges them. A kill before the commit leaves rows that nothing
names, and the next writer overwrites them; after the commit nothing is lost. Readers see the state at the start of
their own transaction: rows that this state names are never overwritten, and a compacted file has another name.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clip_guidance.index.entries import Batch, Entry
from clip_guidance.index.nearest import nearest
from clip_guidance.index.results import Hit
from clip_guidance.index.schema import COLUMNS, FILE, MOVE, PUT, SCHEMA, VERSION
from clip_guidance.index.vectors import ImageIndexError, VectorFile
from clip_guidance.index.where import ALL, Condition

_CACHED = 4  # answers of rows: 8 bytes per image each


class Store:
    """Keep the catalogue and vectors of an index in a folder.

    Args:
        folder: Folder of the index.
        meta: Fingerprint, dim, dtype and model of an index that is to be made where there is none.
        timeout: Seconds to wait for another process that is writing.

    Raises:
        ImageIndexError: There is no index and ``meta`` is None, the folder holds other things, or the index is damaged.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any] | None, timeout: float = 60.0) -> None:
        self.folder, self.timeout = folder, timeout
        if not (folder / FILE).exists():
            if meta is None:
                raise ImageIndexError(f"{folder}: there is no image index")
            if folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
                raise ImageIndexError(
                    f"{folder}: expected an image index or a new or empty folder, it holds other files"
                )
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()  # a connection serves one thread at a time
        self._db = sqlite3.connect(folder / FILE, timeout=timeout, isolation_level=None, check_same_thread=False)
        self._vectors: VectorFile | None = None
        self._cached_rows: dict[Condition, np.ndarray] = {}
        self._cached_at = -1
        try:
            self._prepare(meta)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, meta: Mapping[str, Any] | None) -> None:
        self._use_write_ahead_log()
        self._run("PRAGMA synchronous = FULL")
        if not self._run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            if meta is None:  # its creation was cut short
                raise ImageIndexError(f"{self.folder}: there is no image index")
            self._create(meta)
        self.meta: dict[str, Any] = dict(self._run("SELECT key, value FROM meta").fetchall())
        if self.meta.get("version") != VERSION:
            found = self.meta.get("version")
            raise ImageIndexError(f"{self.folder}: expected an index of version {VERSION}, got {found}")

    def _use_write_ahead_log(self) -> None:
        end = time.monotonic() + self.timeout
        while True:
            try:
                self._run("PRAGMA journal_mode = WAL")
                return
            except ImageIndexError as error:  # the one lock that SQLite does not wait for
                if "locked" not in str(error.__cause__) or time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def _create(self, meta: Mapping[str, Any]) -> None:
        self._run("BEGIN IMMEDIATE")
        try:
            if not self._run("SELECT count(*) FROM sqlite_master").fetchone()[0]:  # no other process was quicker
                name = f"vectors-{uuid.uuid4().hex[:8]}"
                VectorFile.create(self.folder / name, meta["dim"], meta["dtype"])
                for statement in SCHEMA:
                    self._run(statement)
                rows = {**meta, "version": VERSION, "id": uuid.uuid4().hex, "vectors": name, "rows": 0, "changes": 0}
                self._db.executemany("INSERT INTO meta VALUES (?, ?)", rows.items())
            self._run("COMMIT")
        finally:
            if self._db.in_transaction:
                self._run("ROLLBACK")

    # Transactions

    @contextmanager
    def reading(self) -> Iterator[np.ndarray]:
        """Read one state of the index, whatever others write meanwhile.

        Yields:
            The vectors (rows, d), some of which belong to no image.
        """
        with self._lock:
            vectors = self._snapshot()
            try:
                yield vectors
            finally:
                self._run("COMMIT")

    def _snapshot(self) -> np.ndarray:
        while True:
            self._run("BEGIN")
            try:
                return self._file().read(self.get("rows"))
            except FileNotFoundError:  # compacted after this transaction began; the next one knows the new file
                self._run("ROLLBACK")
                if not (self.folder / self.get("vectors")).exists():
                    raise ImageIndexError(f"{self.folder}: its vector file {self.get('vectors')} is missing") from None
            except BaseException:
                self._run("ROLLBACK")
                raise

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write as the only writer, in this process and all others; everything or nothing is kept."""
        with self._lock:
            self._run("BEGIN IMMEDIATE")
            try:
                yield
                self._run("UPDATE meta SET value = value + 1 WHERE key = 'changes'")
                self._run("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._run("ROLLBACK")

    def close(self) -> None:
        """Close the connection; the object is of no use afterwards."""
        with self._lock:
            self._vectors = None
            self._db.close()

    # Reading

    def get(self, key: str) -> Any:
        """Return the current value of a key of the table ``meta``."""
        return self._fetch("SELECT value FROM meta WHERE key = ?", (key,))[0][0]

    def count(self, condition: Condition = ALL) -> int:
        """Count the images that meet a condition."""
        return int(self._fetch(f"SELECT count(*) FROM entries WHERE {condition.sql}", condition.parameters)[0][0])

    def rows(self, condition: Condition = ALL) -> np.ndarray:
        """Return the rows of images that meet a condition, ascending int64.

        The last few answers are cached until a change.
        """
        with self._lock:
            changes = self.get("changes")
            if self._cached_at != changes:
                self._cached_rows, self._cached_at = {}, changes
            if condition not in self._cached_rows:
                if len(self._cached_rows) == _CACHED:
                    del self._cached_rows[next(iter(self._cached_rows))]
                sql = f"SELECT row FROM entries WHERE {condition.sql} ORDER BY row"
                found = self._run(sql, condition.parameters)
                self._cached_rows[condition] = np.fromiter((row for (row,) in found), np.int64)
            return self._cached_rows[condition]

    def by_path(self, path: str) -> Entry | None:
        """Find the image of a path."""
        return next(iter(self._entries("path = ?", (path,))), None)

    def by_hash(self, content: str) -> list[Entry]:
        """Find images of the same bytes."""
        return self._entries("hash = ?", (content,))

    def by_rows(self, rows: Iterable[int]) -> list[Entry]:
        """Find images by the rows of their vectors, in the order given."""
        return [entry for row in rows for entry in self._entries("row = ?", (int(row),))]

    def search(self, queries: np.ndarray, k: int, condition: Condition = ALL, *, exact: bool = True) -> list[list[Hit]]:
        """Find the best images for each query (q, d), among those that meet a condition; always exact in a folder."""
        if k < 1:
            raise ValueError(f"k: expected at least 1, got {k}")
        with self.reading() as vectors:
            found = nearest(vectors, self.rows(condition), queries, k)
            return [
                [Hit(entry.path, float(s), entry.metadata) for entry, s in zip(self.by_rows(rows), scores, strict=True)]
                for rows, scores in zip(found.rows, found.scores, strict=True)
            ]

    def entries(self, condition: Condition = ALL, page: int = 1000) -> Iterator[Entry]:
        """Yield all images that meet a condition, by age, read a page at a time."""
        last = 0
        while True:
            sql = f"({condition.sql}) AND id > ? ORDER BY id LIMIT {page}"
            entries = self._entries(sql, (*condition.parameters, last))
            yield from entries
            if len(entries) < page:
                return
            last = entries[-1].id

    def _entries(self, sql: str, parameters: Sequence[Any]) -> list[Entry]:
        found = self._fetch(f"SELECT {COLUMNS} FROM entries WHERE {sql}", parameters)
        return [
            Entry(number, path, content, size, mtime_ns, row, json.loads(metadata))
            for number, path, content, size, mtime_ns, row, metadata in found
        ]

    def _fetch(self, sql: str, parameters: Sequence[Any]) -> list[Any]:
        with self._lock:
            return self._run(sql, parameters).fetchall()

    # Writing

    def apply(self, batch: Batch) -> list[str]:
        """Acknowledge a batch: when this returns, it is on the disk.

        Returns:
            Paths of moved images that another process removed or changed meanwhile; they are not in the index.
        """
        lost = []
        with self.writing():
            if batch.put:
                row = self.get("rows")
                self._file().write(row, np.stack(list(batch.embeds)))
                rows = [{**vars(seen), "row": row + i} for i, seen in enumerate(batch.put)]
                self._db.executemany(PUT, rows)
                self._run("UPDATE meta SET value = ? WHERE key = 'rows'", (row + len(rows),))
            for number, seen in batch.moved:
                self._run("DELETE FROM entries WHERE path = ? AND id != ?", (seen.path, number))
                if not self._run(MOVE, {**vars(seen), "id": number}).rowcount:
                    lost.append(seen.path)
        return lost

    def delete(self, condition: Condition) -> list[str]:
        """Remove the images that meet a condition; return their paths."""
        with self.writing():
            found = self._fetch(f"SELECT path FROM entries WHERE {condition.sql}", condition.parameters)
            self._run(f"DELETE FROM entries WHERE {condition.sql}", condition.parameters)
        return [path for (path,) in found]

    def patch(self, condition: Condition, patch: str) -> int:
        """Change the metadata of the images that meet a condition; return their number."""
        sql = f"UPDATE entries SET metadata = json_patch(metadata, ?) WHERE {condition.sql}"
        with self.writing():
            return self._run(sql, (patch, *condition.parameters)).rowcount

    def renumber(self, rows: np.ndarray, vectors: str) -> None:
        """Make the vectors of ``rows``, ascending, rows 0, 1, 2, ... of the file ``vectors``; within ``writing``."""
        pairs = ((new, old) for new, old in enumerate(rows.tolist()) if new != old)
        self._db.executemany("UPDATE entries SET row = ? WHERE row = ?", pairs)  # ascending: a new number is free
        self._db.executemany("UPDATE meta SET value = ? WHERE key = ?", [(len(rows), "rows"), (vectors, "vectors")])

    def flush(self) -> None:
        """End a number of changes; in a folder each change is complete in itself."""

    def _file(self) -> VectorFile:
        path = self.folder / self.get("vectors")
        if self._vectors is None or self._vectors.path != path:
            self._vectors = VectorFile(path)
        return self._vectors

    def _run(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(sql, parameters)
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                waited = f"another process has been writing for more than {self.timeout:g} s"
                raise ImageIndexError(f"{self.folder}: {waited}; try again later") from error
            raise ImageIndexError(f"{self.folder}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ImageIndexError(f"{self.folder / FILE}: is damaged: {error}") from error


def _is_foreign(path: Path) -> bool:
    return not path.name.startswith((FILE, "vectors-"))  # another process may just have made these files
