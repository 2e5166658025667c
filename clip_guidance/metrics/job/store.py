"""What is done, in SQLite: a row that was put survives a kill at any moment, and is found by its image and text.

A run reads one file, ``scores.csv.partial``, with what earlier runs did, and each process writes a file of its own,
``scores.csv.partial-0`` and so on: no file is read while it is written. At the end of the run, or at the start of the
next one, the first file absorbs the others.

Positions give the order of the output. Those of earlier runs become negative when a run begins; a row that the run
meets again gets a new position.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from clip_guidance._sqlite import check_schema, connect, schema_of

VERSION = 1
_SCHEMA = (
    "CREATE TABLE records (id TEXT PRIMARY KEY, place INTEGER NOT NULL, content TEXT NOT NULL)",
    """CREATE TABLE rows (
        image TEXT, prompt TEXT, record TEXT, position INTEGER, hash TEXT, score REAL, guided INTEGER,
        tokens INTEGER, truncated INTEGER, PRIMARY KEY (image, prompt, record)
    ) WITHOUT ROWID""",
    "CREATE INDEX by_position ON rows (position)",
    "CREATE TABLE failures (position INTEGER PRIMARY KEY, image TEXT, reason TEXT)",
    f"PRAGMA user_version = {VERSION}",
)
_PUT = "INSERT OR IGNORE INTO main.rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_COLUMNS = "image, prompt, record, position, hash, score, guided, tokens, truncated"
_ABSORB = f"""INSERT INTO main.rows SELECT {_COLUMNS} FROM shard.rows WHERE true
    ON CONFLICT (image, prompt, record) DO UPDATE SET position = excluded.position, hash = excluded.hash,
    score = excluded.score, guided = excluded.guided, tokens = excluded.tokens, truncated = excluded.truncated
    WHERE main.rows.position < 0 OR excluded.position < main.rows.position"""


class ScoresError(ValueError):
    """Report that a file of scores cannot be used as asked; the message names the file and says what to do."""


@dataclass(frozen=True)
class ScoreRow:
    """Hold one score.

    Attributes:
        image: Name of the image.
        prompt: Text that the image is compared with; empty where there is none.
        record: Id of the definition, model and preprocessing, see :func:`record_id`.
        position: Place in the output.
        hash: BLAKE2b-128 of the image's bytes, hexadecimal.
        score: The number.
        guided: Whether the CLIP that scores the image also steered it.
        tokens: Length of the longest text, start and end included; None where there is no text.
        truncated: Whether a text was cut to the context.
    """

    image: str
    prompt: str
    record: str
    position: int
    hash: str
    score: float
    guided: bool
    tokens: int | None
    truncated: bool


@dataclass(frozen=True)
class Failure:
    """Name an image that could not be scored, and why."""

    position: int
    image: str
    reason: str


@dataclass(frozen=True)
class Summary:
    """Summarise all scores of one definition and model.

    Attributes:
        record: Definition, model, preprocessing.
        count: Number of scores.
        arithmetic_mean: Mean of the scores, from their exact sum: it does not depend on their order.
        guided: Number of scores of images that this CLIP steered.
        truncated: Number of scores with a text that was cut.
    """

    record: dict[str, Any]
    count: int
    arithmetic_mean: float
    guided: int
    truncated: int


def record_id(record: Mapping[str, Any]) -> str:
    """Return 16 digits that identify a record, also when numbers in it have become texts.

    Any format of the output gives the same digits back.
    """
    known = sorted((key, str(value)) for key, value in record.items() if value not in (None, ""))
    return hashlib.blake2b(json.dumps(known).encode(), digest_size=8).hexdigest()


class ScoreStore:
    """Keep rows and failures in an SQLite file.

    Args:
        path: Path of the file; it is made where there is none.
        read_only: Whether several processes may open the file at once; it must exist then.

    Raises:
        ScoresError: The file is something else, or of another version.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path = path
        self._lock = threading.Lock()  # the threads that decode ask what is known
        with self._errors():
            self._db = connect(path, read_only=read_only, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(read_only)
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> ScoreStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def _prepare(self, read_only: bool) -> None:
        with self._errors():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0 and not read_only:
            self._transact(lambda: [self._db.execute(statement) for statement in _SCHEMA])
        elif version != VERSION:
            raise ScoresError(f"{self.path}: expected scores of version {VERSION}, got {version}; delete it")
        with self._errors():
            check_schema(self._db, schema_of(_SCHEMA))

    def known(self, image: str, prompt: str, content: str) -> dict[str, ScoreRow]:
        """Return the scores of an image with these bytes, by the ids of their records."""
        with self._lock, self._errors():
            sql = f"SELECT {_COLUMNS} FROM rows WHERE image = ? AND prompt = ? AND hash = ?"
            return {row.record: row for row in map(_row, self._db.execute(sql, (image, prompt, content)))}

    def put(self, rows: Sequence[ScoreRow], failures: Sequence[Failure] = ()) -> int:
        """Acknowledge some rows: once this returns, a kill does not lose them.

        Returns:
            The number of rows that are new: of pairs given twice the first counts.
        """
        before = self._db.total_changes

        def write() -> int:
            self._db.executemany(_PUT, map(astuple, rows))
            added = self._db.total_changes - before
            escaped = ((failed.position, _escaped(failed.image), _escaped(failed.reason)) for failed in failures)
            self._db.executemany("INSERT OR REPLACE INTO failures VALUES (?, ?, ?)", escaped)
            return added

        return self._transact(write)

    def begin(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Start a run with these records, in this order; the rows that are there belong to earlier runs."""
        records = list(records)

        def write() -> None:
            self._db.execute("DELETE FROM failures")
            (last,) = self._db.execute("SELECT ifnull(max(position), -1) FROM rows").fetchone()
            self._db.execute("UPDATE rows SET position = position - ?", (last + 1,))
            self._db.execute("UPDATE records SET place = place + ?", (len(records),))
            self._add_records(records)

        self._transact(write)

    def add(self, scores: Iterable[tuple[ScoreRow, Mapping[str, Any]]]) -> None:
        """Add what an earlier output holds, with the record of each row; rows that are known already stay."""

        def write() -> None:
            seen: set[str] = set()
            for row, record in scores:
                if row.record not in seen:
                    seen.add(row.record)
                    sql = "INSERT OR IGNORE INTO records VALUES (?, ?, ?)"
                    self._db.execute(sql, (row.record, len(seen), json.dumps(record, allow_nan=False)))
                self._db.execute(_PUT, astuple(row))

        self._transact(write)

    def absorb(self, path: Path) -> None:
        """Take over the file of a process, then delete it.

        A kill in between does no harm: the file is absorbed again.
        """
        with ScoreStore(path):  # rolls back what a kill left half written
            pass
        with self._errors():  # to be read only: a transaction on one file leaves no journal over several
            self._db.execute("ATTACH ? AS shard", (path.absolute().as_uri() + "?mode=ro",))

        def write() -> None:
            self._db.execute(_ABSORB)
            self._db.execute("INSERT OR REPLACE INTO main.failures SELECT * FROM shard.failures")

        try:
            self._transact(write)
        finally:
            self._db.execute("DETACH shard")
        path.unlink()

    def rows(self) -> Iterator[tuple[ScoreRow, dict[str, Any]]]:
        """Yield all rows in the order of the output, each with its record."""
        records = self.records()
        sql = f"SELECT {_COLUMNS} FROM rows JOIN records ON rows.record = records.id ORDER BY position, image, place"
        with self._errors():
            for values in self._db.execute(sql):
                row = _row(values)
                yield row, records[row.record]

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the records by their ids, those of the last run first."""
        with self._errors():
            found = self._db.execute("SELECT id, content FROM records ORDER BY place").fetchall()
        return {key: json.loads(content) for key, content in found}

    def failures(self) -> Iterator[Failure]:
        """Yield the images that failed in this run, in their order."""
        with self._errors():
            yield from (Failure(*values) for values in self._db.execute("SELECT * FROM failures ORDER BY position"))

    def scored(self) -> int:
        """Count the items of this run that have scores."""
        with self._errors():
            (found,) = self._db.execute("SELECT count(DISTINCT position) FROM rows WHERE position >= 0").fetchone()
        return int(found)

    def summary(self, record: str) -> Summary:
        """Summarise the rows of one record."""
        with self._errors():
            sql = "SELECT count(*), total(guided), total(truncated) FROM rows WHERE record = ?"
            count, guided, truncated = self._db.execute(sql, (record,)).fetchone()
            scores = self._db.execute("SELECT score FROM rows WHERE record = ?", (record,))
            total = math.fsum(score for (score,) in scores)
        mean = total / count if count else math.nan
        return Summary(self.records()[record], count, mean, int(guided), int(truncated))

    def _add_records(self, records: Iterable[Mapping[str, Any]]) -> None:
        numbered = enumerate(records)
        values = ((record_id(record), place, json.dumps(record, allow_nan=False)) for place, record in numbered)
        self._db.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", values)

    def _transact(self, write: Callable[[], Any]) -> Any:
        with self._lock, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                result = write()
                self._db.execute("COMMIT")
                return result
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def _errors(self) -> _Errors:
        return _Errors(self.path)


class _Errors:
    """Raise SQLite's errors (a full disk, a damaged file) with the name of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, sqlite3.Error):
            raise ScoresError(f"{self.path}: {error}; what was acknowledged before is kept") from error


def _escaped(text: str) -> str:
    """Escape what is no valid text: a name may be just why its image failed."""
    return text.encode("utf-8", "backslashreplace").decode()


def _row(values: Sequence[Any]) -> ScoreRow:
    named = dict(zip((field.name for field in fields(ScoreRow)), values, strict=True))
    return ScoreRow(**{**named, "guided": bool(named["guided"]), "truncated": bool(named["truncated"])})
