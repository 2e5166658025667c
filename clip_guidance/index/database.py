"""The SQLite file of a catalogue: opened to be written where that is possible, and every error names the folder."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from clip_guidance._files import shorten
from clip_guidance._sqlite import check_schema, connect, schema
from clip_guidance.index.keys import names_of
from clip_guidance.index.schema import FILE, KNOWN
from clip_guidance.index.vectors import ImageIndexError, short_name


class Database:
    """Run statements in the catalogue of an index.

    In a folder that may not be written the file is read as it stands, without locks.

    Args:
        folder: Folder of the index.
        timeout: Seconds to wait for another process that is writing.

    Attributes:
        read_only: Whether the folder may not be written.

    Raises:
        ImageIndexError: The file cannot be opened, is damaged, or holds what no index holds.
    """

    def __init__(self, folder: Path, timeout: float) -> None:
        self.folder, self.timeout, self.read_only = folder, timeout, False
        with self.errors():
            self._file = self._open()
        try:
            self._use_write_ahead_log()
            with self.errors():
                keys = {each for each in schema(self._file) if names_of([each])}
                check_schema(self._file, KNOWN | keys)
            self.run("PRAGMA synchronous = FULL")
        except BaseException:
            self.close()
            raise

    def run(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Run a statement; what is read of the cursor later is to be read within :meth:`errors`."""
        with self.errors():
            return self._file.execute(sql, parameters)

    def run_many(self, sql: str, parameters: Iterable[Any]) -> None:
        """Run a statement for each of many parameters."""
        with self.errors():
            self._file.executemany(sql, parameters)

    def fetch(self, sql: str, parameters: Any = ()) -> list[Any]:
        """Run a statement and return all that it finds."""
        with self.errors():
            return self._file.execute(sql, parameters).fetchall()

    def run_at_once(self, *statements: str) -> bool:
        """Run statements if no other process is writing and the file may be written; return whether they were run."""
        with self.errors():
            self._file.execute("PRAGMA busy_timeout = 0")
        try:
            for sql in statements:
                self._file.execute(sql)
        except sqlite3.OperationalError:
            return False
        finally:
            self._file.execute(f"PRAGMA busy_timeout = {round(1000 * self.timeout)}")
        return True

    def key_indexes(self) -> set[str]:
        """Return the names of the indexes on keys of the metadata."""
        with self.errors():
            return names_of(schema(self._file))

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._file.in_transaction

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Raise the errors of SQLite as those of an index."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                waited = f"another process has been writing for more than {self.timeout:g} s"
                raise ImageIndexError(f"{short_name(self.folder)}: {waited}; try again later") from error
            reason = "it may not be written here" if "readonly" in str(error) else shorten(str(error), 150)
            raise ImageIndexError(f"{short_name(self.folder)}: {reason}") from error
        except sqlite3.Error as error:
            reason = shorten(str(error), 120)
            raise ImageIndexError(f"{short_name(self.folder / FILE)}: is damaged: {reason}") from error

    def _open(self, immutable: bool = False) -> sqlite3.Connection:
        path, alone = self.folder / FILE, {"isolation_level": None, "check_same_thread": False}
        file = connect(path, immutable, timeout=self.timeout, **alone)  # type: ignore[arg-type]
        # Indexes on keys call functions of JSON. No table is read before it is known that the file defines no others.
        file.execute("PRAGMA trusted_schema = ON")
        return file

    def _use_write_ahead_log(self) -> None:
        end = time.monotonic() + self.timeout
        while True:
            try:
                self.run("PRAGMA journal_mode = WAL")
                self.run("SELECT 1 FROM sqlite_master LIMIT 1")  # needs the log's files, which it may have to make
                return
            except ImageIndexError as error:
                reason = str(error.__cause__)
                if "readonly" in reason or "unable to open" in reason:
                    self._open_read_only(error)
                    return
                if "locked" not in reason or time.monotonic() > end:  # the one lock that SQLite does not wait for
                    raise
                time.sleep(0.01)

    def _open_read_only(self, error: ImageIndexError) -> None:
        """Open a file beside which no log can be written; one with a log that is not merged yet cannot be read so."""
        path, log = self.folder / FILE, self.folder / f"{FILE}-wal"
        if not path.is_file() or path.stat().st_size == 0:
            raise error
        if log.exists() and log.stat().st_size:
            reason = f"its last changes are in {log.name}, and it may not be written here; open it once where it may be"
            raise ImageIndexError(f"{short_name(self.folder)}: {reason}") from error
        self._file.close()
        with self.errors():
            self._file = self._open(immutable=True)
        self.read_only = True
