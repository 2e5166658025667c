"""Write rows as a table: .jsonl (an object per line), .csv (a header and lines), or .parquet (row groups).

In .csv a text that begins with = + - or @ has an apostrophe before it, lest a spreadsheet compute it; :func:`unquoted`
takes it away again. A file is written beside its place and moved there when it is complete, so it is never half
written.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

from clip_guidance._files import write_atomically
from clip_guidance.metrics.job.store import ScoresError

SUFFIXES = (".jsonl", ".csv", ".parquet")
GROUP = 8192  # rows in memory at once
_FORMULA = re.compile("'*[=+\\-@\t\r]")  # the beginning of a cell that a spreadsheet computes, or of one that is quoted
_NAMES = {str: "string", bool: "bool_", int: "int64", float: "float64"}  # pyarrow's names of the types of columns


def write_table(
    path: Path,
    rows: Iterable[dict[str, Any]],
    columns: Mapping[str, type],
    about: Mapping[str, str] | None = None,
) -> None:
    """Write or replace a table.

    Args:
        path: Path of the file; its suffix is the format.
        rows: The rows by column; a column that a row lacks, or where it holds None, is empty there.
        columns: The columns in their order, each with the type of its values: str, bool, int or float. In .parquet
            other values of a column of texts become texts.
        about: Further metadata of the schema, which only .parquet has.

    Raises:
        ScoresError: Parquet needs pyarrow, which is not installed.
        OSError: The file cannot be written.
    """
    with write_atomically(path) as partial:
        if path.suffix == ".parquet":
            _write_parquet(partial, rows, columns, about or {})
        else:
            with partial.open("w", encoding="utf-8", newline="") as file:
                (_write_csv if path.suffix == ".csv" else _write_jsonl)(file, rows, list(columns))


def check_output(path: Path) -> None:
    """Check, before the work, that a table can be written to a path; make its folder where there is none.

    Raises:
        ScoresError: The path is a folder, or parquet needs pyarrow, which is not installed.
        OSError: The folder cannot be made.
    """
    if path.suffix == ".parquet":
        import_pyarrow(path)
    if path.is_dir():
        raise ScoresError(f"--output {path}: expected a file, got a folder")
    path.parent.mkdir(parents=True, exist_ok=True)


def import_pyarrow(path: Path) -> Any:
    """Import pyarrow and its parquet.

    Raises:
        ScoresError: They are not installed, and the file needs them.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ScoresError(f"{path}: parquet needs pyarrow: pip install 'clip-guidance[data]'") from None
    return pa, pq


def unquoted(value: str) -> str:
    """Return a cell of .csv without the apostrophe that keeps spreadsheets from computing it."""
    return value[1:] if value.startswith("'") and _FORMULA.match(value) else value


def _quoted(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _write_jsonl(file: IO[str], rows: Iterable[dict[str, Any]], _: Sequence[str]) -> None:
    file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def _write_csv(file: IO[str], rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> None:
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows({name: _quoted(value) for name, value in row.items()} for row in rows)


def _write_parquet(
    path: Path, rows: Iterable[dict[str, Any]], columns: Mapping[str, type], about: Mapping[str, str]
) -> None:
    pa, pq = import_pyarrow(path)
    schema = pa.schema([(name, getattr(pa, _NAMES[kind])()) for name, kind in columns.items()], dict(about))
    texts = [name for name, kind in columns.items() if kind is str]
    with pq.ParquetWriter(path, schema) as writer:
        rows = iter(rows)
        while group := list(islice(rows, GROUP)):
            for row in group:
                row.update({name: str(row[name]) for name in texts if row.get(name) is not None})
            writer.write_table(pa.Table.from_pylist(group, schema))
