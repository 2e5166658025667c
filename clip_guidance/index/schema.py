"""The tables of the catalogue, and the statements that write them."""

from __future__ import annotations

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
COLUMNS = "id, path, hash, size, mtime_ns, row, metadata"
PUT = """INSERT INTO entries (path, hash, size, mtime_ns, row, metadata)
    VALUES (:path, :hash, :size, :mtime_ns, :row, json_patch('{}', :patch))
    ON CONFLICT (path) DO UPDATE SET hash = :hash, size = :size, mtime_ns = :mtime_ns, row = :row,
    metadata = json_patch(metadata, :patch)"""
MOVE = """UPDATE entries SET path = :path, size = :size, mtime_ns = :mtime_ns, metadata = json_patch(metadata, :patch)
    WHERE id = :id AND hash = :hash"""
