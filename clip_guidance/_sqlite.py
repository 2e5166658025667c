"""SQLite files that anybody may have written or damaged: opened without waiting, and free of foreign statements."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clip_guidance._files import stat_regular

_BESIDE = ("", "-wal", "-shm", "-journal")  # the files that SQLite opens for a database


def connect(path: Path, immutable: bool = False, read_only: bool = False, **options: Any) -> sqlite3.Connection:
    """Open an SQLite file, or make it.

    Args:
        path: The file.
        immutable: Read a file of a folder that may not be written. Nothing is locked, and the write-ahead log beside
            the file is not read.
        read_only: Read a file that exists, and whose changes by others are seen.
        **options: As for ``sqlite3.connect``.

    Raises:
        sqlite3.OperationalError: The file cannot be opened, or it is a pipe, a device or a folder, or a file that
            SQLite keeps beside it is: reading a pipe may never end.
    """
    for suffix in _BESIDE:
        try:
            stat_regular(f"{path}{suffix}")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise sqlite3.OperationalError(f"{path.name}{suffix} cannot be read ({reason})") from error
    if immutable or read_only:
        how = "immutable=1" if immutable else "mode=ro"
        file = sqlite3.connect(f"{Path(os.path.abspath(path)).as_uri()}?{how}", uri=True, **options)
    else:
        file = sqlite3.connect(path, **options)
    file.execute("PRAGMA trusted_schema = OFF")  # what the file itself defines may call no function with side effects
    file.execute("PRAGMA cell_size_check = ON")  # damaged pages are found when they are read
    return file


def schema(file: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """Return type, name and statement of the tables, views, indices and triggers that were made in a file."""
    sql = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' LIMIT 100"
    return {(kind, name, " ".join(str(statement).split())) for kind, name, statement in file.execute(sql)}


def schema_of(statements: Iterable[str]) -> set[tuple[str, str, str]]:
    """Return what :func:`schema` returns of a file in which these statements were run."""
    with contextlib.closing(sqlite3.connect(":memory:")) as file:
        for statement in statements:
            file.execute(statement)
        return schema(file)


def check_schema(file: sqlite3.Connection, known: set[tuple[str, str, str]]) -> None:
    """Check that nothing was made in a file but what is known; a foreign view or trigger may run for ever.

    Raises:
        sqlite3.DatabaseError: There is something else, or the file is damaged.
    """
    if foreign := schema(file) - known:
        kind, name, _ = min(foreign, key=repr)
        raise sqlite3.DatabaseError(f"holds the {kind!s:.20} {name!s:.40}, which is not of this kind of file")
