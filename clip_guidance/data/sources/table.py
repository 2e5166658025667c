"""Read tables with one row per image: CSV, TSV, JSONL, and parquet by row groups."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clip_guidance.data.records import BadRow, Part, Record, SourceError
from clip_guidance.data.sources.columns import Columns

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
BATCH_ROWS = 64  # of a parquet file in memory at once
COLUMN_SEARCH_ROWS = 1000  # of a JSONL file, whose keys are its columns: the first row may be a bad one


class TableSource:
    """Read the rows of one or more tables, as a :class:`.Source`.

    A part is a row group of a parquet file, or a whole text file. Relative paths start at the table's folder.

    Args:
        paths: The tables.
        name: What the user asked for.
        image_column: Column of the image; by default the first with a customary name.
        caption_columns: Columns of the captions; by default those with a customary name.
        need_captions: Whether a table must have a column of captions; see :meth:`Columns.find`.

    Raises:
        SourceError: A table has no column of images, or no column of captions where it must have one.
    """

    kind = "table"

    def __init__(
        self,
        paths: Sequence[Path],
        name: str,
        image_column: str | None = None,
        caption_columns: Sequence[str] = (),
        need_captions: bool = True,
    ):
        self.name = name
        self.parts: list[Part] = []
        self._places: list[tuple[Path, int, int]] = []  # table, row group, number of its first row
        self._columns: dict[Path, Columns] = {}
        self._broken: dict[Path, str] = {}
        for path in paths:
            try:
                names, groups, classes = _layout(path)
            except SourceError:
                raise
            except (OSError, ValueError, csv.Error) as error:  # the file is not a table: one bad row names it
                self._broken[path], groups = f"{path}: {error}", [1]
            else:
                options = (image_column, caption_columns, classes, need_captions)
                self._columns[path] = Columns.find(names, str(path), *options)
            first = 1
            for group, rows in enumerate(groups):
                self.parts.append(Part(f"{path.name}/{group}", rows))
                self._places.append((path, group, first))
                first += rows or 0

    def columns(self, path: Path) -> Columns | None:
        """Return the columns of a table that are read; None where the file is not a table."""
        return self._columns.get(path)

    def read(self, index: int) -> Iterator[Record]:
        """Yield the records of a part; where a row group breaks off, its remaining rows are bad."""
        path, group, first = self._places[index]
        origin = str(path)
        if path in self._broken:
            yield Record(path.name, origin, problem=BadRow("broken_file", self._broken[path]))
            return
        columns = self._columns[path]
        rows = _parquet_rows(path, group, columns) if path.suffix.lower() == ".parquet" else _text_rows(path)
        for number in itertools.count(first):
            try:
                row = next(rows)
            except StopIteration:
                return
            except (OSError, ValueError, NotImplementedError) as error:  # whatever pyarrow's errors derive from
                for lost in range(number, max(number + 1, first + (self.parts[index].rows or 0))):
                    yield Record(f"row {lost}", origin, problem=BadRow("broken_file", f"{path}: {error}"))
                return
            if isinstance(row, BadRow):
                yield Record(f"row {number}", origin, problem=row)
            else:
                yield columns.record(row, f"row {number}", origin, path.parent)


def _layout(path: Path) -> tuple[list[str], list[int | None], dict[str, list[str]]]:
    """Return column names, the rows of each part where known, and class names by column."""
    if path.suffix.lower() != ".parquet":
        return *_text_layout(path), {}
    with _parquet(path) as file:
        meta, schema = file.metadata, file.schema_arrow
        groups = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        return schema.names, groups, _class_names((schema.metadata or {}).get(b"huggingface", b"{}"))


def _class_names(described: bytes) -> dict[str, list[str]]:
    """Read class names by column from the schema that ``datasets`` writes into a parquet file."""
    try:
        features = json.loads(described)["info"]["features"]
        kinds = {column: kind for column, kind in features.items() if isinstance(kind, dict)}
        return {column: kind["names"] for column, kind in kinds.items() if kind.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, AttributeError, TypeError):
        return {}


def _parquet_rows(path: Path, group: int, columns: Columns) -> Iterator[Any]:
    with _parquet(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns.names):
            yield from batch.to_pylist()


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise SourceError(f"{path}: parquet needs pyarrow: pip install 'clip-guidance[data]'") from None
    return pq.ParquetFile(path, pre_buffer=False)


def _text_layout(path: Path) -> tuple[list[str], list[int | None]]:
    """Return column names, and one part of unknown length.

    Raises:
        ValueError: The file has no first row.
    """
    if path.suffix.lower() == ".jsonl":
        rows = itertools.islice((row for row in _text_rows(path) if isinstance(row, dict)), COLUMN_SEARCH_ROWS)
        names = dict.fromkeys(name for row in rows for name in row)
        if not names:
            raise ValueError("expected JSON objects, one per line; found none")
        return list(names), [None]
    with _open(path) as file:
        header = next(csv.reader(file, delimiter=_delimiter(path)), None)
    if not header:
        raise ValueError("expected a first line with the names of the columns; it is empty")
    return header, [None]


def _text_rows(path: Path) -> Iterator[dict[str, Any] | BadRow]:
    with _open(path) as file:
        if path.suffix.lower() == ".jsonl":
            yield from (_json_row(line) for line in file if line.strip())
            return
        lines = csv.reader(file, delimiter=_delimiter(path))
        header = next(lines)
        while True:
            try:
                fields = next(lines)
            except StopIteration:
                return
            except csv.Error as error:  # an unclosed quote makes a field above csv's limit
                yield BadRow("malformed_row", str(error))
                continue
            if len(fields) == len(header):
                yield dict(zip(header, fields, strict=True))
            elif fields:  # else an empty line
                yield BadRow("malformed_row", f"{len(fields)} fields, the header has {len(header)}")


def _json_row(line: str) -> dict[str, Any] | BadRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRow("malformed_row", f"not JSON: {error}")
    return row if isinstance(row, dict) else BadRow("malformed_row", f"expected an object, got {type(row).__name__}")


def _open(path: Path) -> Any:
    """Open a table as text; bytes that are not UTF-8 make their row bad and not the whole table."""
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _delimiter(path: Path) -> str:
    """Return a tab for a .tsv, else the most frequent separator of the first line."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with _open(path) as file:
        header = file.readline(1 << 16)
    return max(",;\t", key=header.count)
