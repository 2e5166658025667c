"""What the catalogue of an index holds: read with its types checked, since others may have written it."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_guidance._files import shorten
from clip_guidance.index.checksums import NONE
from clip_guidance.index.database import Database
from clip_guidance.index.entries import Entry
from clip_guidance.index.keys import LEAST, MOST, index_name, statement, type_and_value
from clip_guidance.index.rows import Memory, Rows
from clip_guidance.index.schema import CHECKSUM, COLUMNS, FILE, META, SCHEMA, VERSION, is_entry
from clip_guidance.index.vectors import ImageIndexError, VectorFile, short_name
from clip_guidance.index.where import ALL, Condition

_NAMED = 8  # keys that a warning names


class Catalogue:
    """Open the catalogue of an index, or make it, and read what it holds.

    Args:
        folder: Folder of the index.
        meta: Fingerprint, dim, dtype and model of an index that is to be made where there is none.
        timeout: Seconds to wait for another process that is writing.

    Raises:
        ImageIndexError: There is no index and ``meta`` is None, the folder holds other things, or the index is damaged.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any] | None, timeout: float = 60.0) -> None:
        self.folder = folder
        try:
            self._check_folder(meta is not None)
        except OSError as error:
            raise ImageIndexError(f"{short_name(folder)}: cannot be used ({error.strerror})") from error
        self._lock = threading.RLock()  # a connection serves one thread at a time
        self._db = Database(folder, timeout)
        try:
            self._prepare(meta)
        except BaseException:
            self._db.close()
            raise

    def _check_folder(self, make: bool) -> None:
        if (self.folder / FILE).exists():
            return
        if not make:
            raise ImageIndexError(f"{short_name(self.folder)}: there is no image index")
        if self.folder.exists() and (not self.folder.is_dir() or any(map(_is_foreign, self.folder.iterdir()))):
            expected = "expected an image index or a new or empty folder, it holds other files"
            raise ImageIndexError(f"{short_name(self.folder)}: {expected}")
        self.folder.mkdir(parents=True, exist_ok=True)

    def _prepare(self, meta: Mapping[str, Any] | None) -> None:
        if self._is_empty():
            if meta is None:  # its creation was cut short
                raise ImageIndexError(f"{short_name(self.folder)}: there is no image index")
            self._create(meta)
        self.meta: dict[str, Any] = dict(self._db.fetch("SELECT key, value FROM meta LIMIT 100"))
        if (version := self.meta.get("version")) != VERSION:
            expected = f"expected an index of version {VERSION}, got {version!s:.20}"
            raise ImageIndexError(f"{short_name(self.folder)}: {expected}")
        for key in META:
            self._check(key, self.meta.get(key))
        self._has_checksums = self._find_checksums()

    def _is_empty(self) -> bool:
        return not self._db.fetch("SELECT 1 FROM sqlite_master LIMIT 1")

    def _find_checksums(self) -> bool:
        return bool(self._db.fetch("SELECT 1 FROM pragma_table_info('entries') WHERE name = 'checksum'"))

    def _check(self, key: str, value: Any) -> Any:
        """Check a value of the table ``meta``."""
        if not META[key](value):
            raise self._damage(f"its {key} is {value!r:.40}")
        return value

    def _create(self, meta: Mapping[str, Any]) -> None:
        self._db.run("BEGIN IMMEDIATE")
        try:
            if self._is_empty():  # no other process was quicker
                name = f"vectors-{uuid.uuid4().hex[:8]}"
                VectorFile.create(self.folder / name, meta["dim"], meta["dtype"])
                for statement in (*SCHEMA, CHECKSUM):
                    self._db.run(statement)
                rows = {**meta, "version": VERSION, "id": uuid.uuid4().hex, "vectors": name, "rows": 0, "changes": 0}
                self._db.run_many("INSERT INTO meta VALUES (?, ?)", rows.items())
            self._db.run("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.run("ROLLBACK")

    def get(self, key: str) -> Any:
        """Return the current value of a key of the table ``meta``."""
        found = self._fetch("SELECT value FROM meta WHERE key = ?", (key,))
        return self._check(key, found[0][0] if found else None)

    def count(self, condition: Condition = ALL) -> int:
        """Count the images that meet a condition."""
        return int(self._fetch(f"SELECT count(*) FROM entries WHERE {condition.sql}", condition.parameters)[0][0])

    def check_integrity(self) -> None:
        """Read the whole catalogue.

        Raises:
            ImageIndexError: It is damaged.
        """
        ((found,),) = self._fetch("PRAGMA quick_check(1)")
        if found != "ok":
            raise self._damage(shorten(str(found), 100))

    def warn_if_none(self, found: object, condition: Condition) -> None:
        """Warn where nothing was found because a filter asks for a key that no image has: it may be misspelled."""
        sql = "SELECT 1 FROM entries WHERE {} IS NOT NULL LIMIT 1"
        names = condition.keys if not found else ()
        unknown = next((name for name in names if not self._fetch(sql.format(type_and_value(name)[0]))), None)
        if unknown is None:
            return
        keys = self._fetch(f"SELECT DISTINCT key FROM entries, json_each(metadata) ORDER BY key LIMIT {_NAMED + 1}")
        there = ["path", *(shorten(str(key), 12) for (key,) in keys[:_NAMED]), *("…" for _ in keys[_NAMED:])]
        missing = f"no image of {short_name(self.folder)} has the key {shorten('.'.join(unknown), 30)!r}"
        warnings.warn(f"where: {missing}; the keys there are: {', '.join(there)}", stacklevel=3)

    def index_keys(self, condition: Condition) -> None:
        """Make the indexes on the keys that a condition asks for, where another process is not writing just now.

        They answer sooner, and nothing else: where they cannot be made, every image is read.
        """
        with self._lock:
            may_write = self._has_checksums and not (self._db.read_only or self._db.in_transaction)
            keys = dict.fromkeys(part.reads for part in condition.parts or (condition,) if part.reads)
            if not (keys and may_write) or self.get("rows") < LEAST:
                return
            made = self._db.key_indexes()
            missing = [names for names in keys if index_name(names) not in made]
            for names in missing[: max(0, MOST - len(made))]:
                # What SQLite then knows of its values lets it choose among the indexes of several keys.
                if not self._db.run_at_once(statement(names), f'ANALYZE "{index_name(names)}"'):
                    return

    def by_path(self, path: str) -> Entry | None:
        """Find the image of a path."""
        return next(iter(self._entries("path = ?", (path,))), None)

    def by_hash(self, content: str) -> list[Entry]:
        """Find images of the same bytes."""
        return self._entries("hash = ?", (content,))

    def by_rows(self, rows: Sequence[int] | np.ndarray) -> list[Entry]:
        """Find images by the rows of their vectors, in the order given."""
        found = [entry for row in rows for entry in self._entries("row = ?", (int(row),))]
        if len(found) != len(rows):
            raise self._damage("the row of an image is no whole number")
        return found

    def entries(self, condition: Condition = ALL, page: int = 1000) -> Iterator[Entry]:
        """Yield all images that meet a condition, by age, read a page at a time."""
        last = 0
        while True:
            sql = f"({condition.sql}) AND id > ? ORDER BY id LIMIT {page}"
            entries = self._entries(sql, (*condition.parameters, last))
            yield from entries
            if len(entries) < page:
                return
            if entries[-1].id <= last:  # the pages would have no end
                raise self._damage("its images are out of order")
            last = entries[-1].id

    def _entries(self, sql: str, parameters: Sequence[Any]) -> list[Entry]:
        found = self._fetch(f"SELECT {COLUMNS} FROM entries WHERE {sql}", parameters)
        return [self._entry(values) for values in found]

    def _entry(self, values: tuple[Any, ...]) -> Entry:
        try:
            metadata = json.loads(values[-1]) if is_entry(values) else None
        except (ValueError, RecursionError):
            metadata = None
        if not isinstance(metadata, dict):
            raise self._damage(f"its image {values[0]!r:.20} is no entry")
        number, path, content, size, mtime_ns, row, _ = values
        return Entry(number, path, content, size, mtime_ns, row, metadata)

    def _damage(self, found: str) -> ImageIndexError:
        return ImageIndexError(f"{short_name(self.folder / FILE)}: is damaged: {found}")

    def _fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            return self._db.fetch(sql, parameters)

    def _read_rows(self, condition: Condition, memory: Memory | None = None) -> np.ndarray:
        """Return the rows of images that meet a condition; ``memory`` holds what was read of this state before."""
        with self._damage_of_rows():
            return Rows(self._fetch, self._db.key_indexes(), self.get("rows"), memory).meeting(condition)

    def _read_checksums(self, rows: np.ndarray) -> np.ndarray:
        """Return the checksums of rows, ascending."""
        if not self._has_checksums:
            return np.full(len(rows), NONE)
        with self._damage_of_rows():
            return Rows(self._fetch, set(), 0).checksums(rows)

    @contextlib.contextmanager
    def _damage_of_rows(self) -> Iterator[None]:
        try:
            yield
        except ImageIndexError:
            raise
        except ValueError as error:
            raise self._damage(str(error)) from error


def _is_foreign(path: Path) -> bool:
    return not path.name.startswith((FILE, "vectors-"))  # another process may just have made these files
