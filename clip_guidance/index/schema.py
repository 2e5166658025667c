"""The tables of the catalogue, the statements that write them, and the types of what is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from clip_guidance._sqlite import schema_of

VERSION = 1
FILE = "index.sqlite"
SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    """CREATE TABLE entries (
        id INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice
        path TEXT NOT NULL UNIQUE,
        hash TEXT NOT NULL,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        row INTEGER NOT NULL UNIQUE,
        metadata TEXT NOT NULL
    )""",
    "CREATE INDEX entries_hash ON entries (hash)",
)
# CRC-32 of the vector's bytes; catalogues made before there were checksums get the column with their next change.
CHECKSUM = "ALTER TABLE entries ADD COLUMN checksum INTEGER"
OUTBOX = (  # with Milvus only
    "CREATE TABLE pending (id INTEGER PRIMARY KEY)",
    "CREATE TRIGGER added AFTER INSERT ON entries BEGIN INSERT OR IGNORE INTO pending VALUES (new.id); END",
    "CREATE TRIGGER changed AFTER UPDATE OF hash ON entries BEGIN INSERT OR IGNORE INTO pending VALUES (new.id); END",
    "CREATE TRIGGER removed AFTER DELETE ON entries BEGIN INSERT OR IGNORE INTO pending VALUES (old.id); END",
)
KNOWN = schema_of((*SCHEMA, *OUTBOX)) | schema_of((*SCHEMA, CHECKSUM))
COLUMNS = "id, path, hash, size, mtime_ns, row, metadata"
PUT = """INSERT INTO entries (path, hash, size, mtime_ns, row, metadata, checksum)
    VALUES (:path, :hash, :size, :mtime_ns, :row, json_patch('{}', :patch), :checksum)
    ON CONFLICT (path) DO UPDATE SET hash = :hash, size = :size, mtime_ns = :mtime_ns, row = :row,
    metadata = json_patch(metadata, :patch), checksum = :checksum"""
MOVE = """UPDATE entries SET path = :path, size = :size, mtime_ns = :mtime_ns, metadata = json_patch(metadata, :patch)
    WHERE id = :id AND hash = :hash"""


def _is_text(value: Any, most: int = 4096) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most


def _is_count(value: Any, most: int = 1 << 40) -> bool:
    return isinstance(value, int) and 0 <= value <= most


# What the values of the table meta may be. The name of the vector file leads into no other folder.
META: dict[str, Callable[[Any], bool]] = {
    "version": lambda value: value == VERSION,
    "fingerprint": lambda value: _is_text(value, 64),
    "model": lambda value: value == "" or _is_text(value),  # a CLIP that was never saved has no name
    "dim": lambda value: _is_count(value, 1 << 16) and value > 0,
    "dtype": lambda value: value in ("float32", "float16"),
    "id": lambda value: _is_text(value) and re.fullmatch("[0-9a-f]{32}", value) is not None,
    "vectors": lambda value: _is_text(value) and re.fullmatch("vectors-[0-9a-f]{8}", value) is not None,
    "rows": _is_count,
    "changes": _is_count,
}


def is_entry(values: tuple[Any, ...]) -> bool:
    """Say whether the values of ``COLUMNS`` have the types that they should have."""
    number, path, content, size, mtime_ns, row, metadata = values
    whole = all(isinstance(value, int) for value in (number, size, mtime_ns))
    return whole and all(map(_is_text, (path, content))) and _is_count(row) and isinstance(metadata, str)
