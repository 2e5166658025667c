"""Indexes of SQLite on the keys of metadata that filters ask for, made on first use and kept up to date by SQLite.

Such an index is on two expressions, the type of a key's value and the value, and serves the statements that have these
very expressions (https://sqlite.org/expridx.html): the JSON path is written into them, quoted, and is no parameter.
The path of an image counts as a key here: its own index, which keeps paths unique, does not hold the row.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

MOST = 16  # indexes of one catalogue: each makes writing slower
LEAST = 5_000  # images below which every one is read as quickly
_NAME = "key-"
PATH = ("path",)  # a filter means the path of the image by it, whatever the metadata hold
# Of one catalogue all statements are known; these are, whatever the key. A quote inside of a literal is doubled.
_STATEMENT = re.compile(
    r"""CREATE\ INDEX\ "key-[0-9a-f]{16}"\ ON\ entries\ \((
        path,\ row | json_type\(metadata,\ (?P<path>'\$(\."([^"'\\]|'')+")+')\),
        \ json_extract\(metadata,\ (?P=path)\),\ row,\ checksum)\)""",
    re.VERBOSE,
)


def json_path(names: Sequence[str]) -> str:
    """Return the JSON path of a key, as SQLite reads it."""
    return "$" + "".join(f'."{name}"' for name in names)


def type_and_value(names: Sequence[str]) -> list[str]:
    """Return the expressions for the type and the value of a key, from its outermost to its innermost name."""
    path = json_path(names).replace("'", "''")
    return [f"{function}(metadata, '{path}')" for function in ("json_type", "json_extract")]


def index_name(names: Sequence[str]) -> str:
    """Return the name of the index on a key."""
    return f"{_NAME}{hashlib.sha256(json_path(names).encode()).hexdigest()[:16]}"


def statement(names: Sequence[str]) -> str:
    """Return the statement that makes the index on a key, with all that a search reads, so that no entry is read."""
    columns = "path, row" if names == PATH else ", ".join([*type_and_value(names), "row", "checksum"])
    return f'CREATE INDEX IF NOT EXISTS "{index_name(names)}" ON entries ({columns})'


def names_of(schema: Iterable[tuple[str, str, str]]) -> set[str]:
    """Return the names of the indexes on keys among what a file holds: of each its kind, name and statement."""
    return {name for kind, name, sql in schema if kind == "index" and _STATEMENT.fullmatch(sql)}
