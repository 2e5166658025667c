"""Tables with a row an image: CSV, TSV, JSONL, and parquet by row groups."""

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
BATCH = 64  # rows of a parquet file in memory at once
LOOKED_AT = 1000  # objects of a JSONL file whose keys are its columns: the first one may be a bad row


class TableSource:
    """Rows of one or more tables; a :class:`~clip_guidance.data.records.Source`.

    A part is a row group of a parquet file, or a whole text file. Relative paths start at the table's folder.

    Args:
        paths: the tables.
        name: what the user asked for.
        image_column: of the image; by default the first with a customary name.
        caption_columns: of the captions; by default those with a customary name.
        need_captions: whether a table must have a column of captions; see :meth:`Columns.find`.

    Raises:
        SourceError: a table has no column of images, or of captions where it must have one.
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
            except (OSError, ValueError, csv.Error) as error:  # not a table at all: one bad row names it
                self._broken[path], groups = f"{path}: {error}", [1]
            else:
                asked = (image_column, caption_columns, classes, need_captions)
                self._columns[path] = Columns.find(names, str(path), *asked)
            first = 1
            for group, rows in enumerate(groups):
                self.parts.append(Part(f"{path.name}/{group}", rows))
                self._places.append((path, group, first))
                first += rows or 0

    def columns(self, path: Path) -> Columns | None:
        """Which columns of a table are read; None where it is no table."""
        return self._columns.get(path)

    def read(self, index: int) -> Iterator[Record]:
        """The records of a part; where a row group breaks off, each row that its file promises is a bad one."""
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
    """Column names, the number of rows of each part where it is known, and the names of classes by column."""
    if path.suffix.lower() != ".parquet":
        return *_text_layout(path), {}
    with _parquet(path) as file:
        meta, schema = file.metadata, file.schema_arrow
        groups = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        return schema.names, groups, _class_names((schema.metadata or {}).get(b"huggingface", b"{}"))


def _class_names(described: bytes) -> dict[str, list[str]]:
    """Names of classes by column, from what ``datasets`` writes into a parquet file; without it there are none."""
    try:
        features = json.loads(described)["info"]["features"]
        kinds = {column: kind for column, kind in features.items() if isinstance(kind, dict)}
        return {column: kind["names"] for column, kind in kinds.items() if kind.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, AttributeError, TypeError):
        return {}


def _parquet_rows(path: Path, group: int, columns: Columns) -> Iterator[Any]:
    with _parquet(path) as file:
        for batch in file.iter_batches(BATCH, row_groups=[group], columns=columns.names):
            yield from batch.to_pylist()


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise SourceError(f"{path}: parquet needs pyarrow: pip install 'clip-guidance[data]'") from None
    return pq.ParquetFile(path, pre_buffer=False)


def _text_layout(path: Path) -> tuple[list[str], list[int | None]]:
    """Column names, and one part of unknown length.

    Raises:
        ValueError: the file has no first row.
    """
    if path.suffix.lower() == ".jsonl":
        rows = itertools.islice((row for row in _text_rows(path) if isinstance(row, dict)), LOOKED_AT)
        names = dict.fromkeys(name for row in rows for name in row)
        if not names:
            raise ValueError("expected JSON objects, one a line; found none")
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
            except csv.Error as error:  # a quote that is never closed ends in a field above csv's limit
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
    """As text; bytes that are not UTF-8 are carried through, so that they cost their row and not the table."""
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _delimiter(path: Path) -> str:
    """A tab in a .tsv; else whichever of comma, semicolon and tab the first line has most of."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with _open(path) as file:
        header = file.readline(1 << 16)
    return max(",;\t", key=header.count)
