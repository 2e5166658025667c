"""Read tables of text row by row: CSV and TSV as spreadsheets write them, JSONL, and JSON as COCO has it.

Of a CSV the delimiter is found from the first line, or read from Excel's own first line ``sep=;``. Bytes that are not
UTF-8 make their row bad and not the whole table; UTF-16 is known by its byte-order mark.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from clip_guidance.data.records import BadRow, load_json
from clip_guidance.data.sources.columns import IMAGES
from clip_guidance.images.find import EXTENSIONS

COLUMN_SEARCH_ROWS = 1000  # of a table of objects, whose keys are its columns: the first row may be a bad one
MAX_JSON_BYTES = 1 << 30  # of a .json file, which is in memory as a whole
DELIMITERS = ",;\t|"
_MARK = re.compile(r'"?sep=(.)"?')  # Excel's own first line

Row: TypeAlias = dict[str, Any]


def text_columns(path: Path) -> list[str]:
    """Return the names of the columns of a table, in order.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file has no first row, or is no table.
    """
    if path.suffix.lower() in (".jsonl", ".json"):
        rows = itertools.islice((row for row in text_rows(path) if isinstance(row, dict)), COLUMN_SEARCH_ROWS)
        names = dict.fromkeys(name for row in rows for name in row)
        if not names:
            raise ValueError("expected JSON objects, one per line; found none")
        return list(names)
    with open_text(path) as file:
        return csv_table(file, _delimiter(path))[0]


def text_rows(path: Path) -> Iterator[Row | BadRow]:
    """Yield the rows of a table, each a dict by column, or why it is bad."""
    if path.suffix.lower() == ".json":
        yield from _json_table(path)
        return
    with open_text(path) as file:
        if path.suffix.lower() == ".jsonl":
            yield from (_json_row(line) for line in file if line.strip())
        else:
            yield from csv_table(file, _delimiter(path))[1]


def csv_table(lines: Iterable[str], delimiter: str | None = None) -> tuple[list[str], Iterator[Row | BadRow]]:
    """Read a CSV of which the first line names the columns.

    Spaces around the names are dropped; where there are such, those around the values are dropped too. A column that
    is named twice holds a list of both values.

    Args:
        lines: Lines with their ends, such as an open file.
        delimiter: By default that of a first line ``sep=;``, else the separator that makes the most of the header.

    Returns:
        Names of the columns, and the rows: a dict by column, or why the row is bad.

    Raises:
        ValueError: There is no header.
    """
    lines = iter(lines)
    head = _header_lines(lines)
    if marked := _MARK.fullmatch(head[0].rstrip("\r\n")):
        delimiter, head = marked[1], _header_lines(lines)
    found = [delimiter] if delimiter else list(DELIMITERS)
    headers = {each: _fields(head, each) for each in found}
    delimiter = max(found, key=lambda each: _is_header(headers[each]) * 1000 + min(len(headers[each]), 999))
    names = [name.strip() for name in headers[delimiter]]
    if not any(names):
        raise ValueError("expected a first line with the names of the columns; it is empty")
    spaced = names != next(csv.reader(head, delimiter=delimiter), [])
    rows = csv.reader(itertools.chain(head, lines), delimiter=delimiter, skipinitialspace=spaced)
    next(rows)
    return list(dict.fromkeys(names)), _csv_rows(rows, names, spaced)


def _csv_rows(rows: Iterator[list[str]], names: Sequence[str], spaced: bool) -> Iterator[Row | BadRow]:
    while True:
        try:
            fields = next(rows)
        except StopIteration:
            return
        except csv.Error as error:  # an unclosed quote makes a field above csv's limit
            yield BadRow("malformed_row", str(error))
            continue
        if not any(fields[len(names) :]):  # a spreadsheet ends its lines with empty cells
            fields = fields[: len(names)]
        if len(fields) == len(names):
            row: dict[str, Any] = {}
            for name, value in zip(names, map(str.strip, fields) if spaced else fields, strict=True):
                row[name] = (
                    [*row[name], value]
                    if isinstance(row.get(name), list)
                    else ([row[name], value] if name in row else value)
                )
            yield row
        elif fields:  # else an empty line
            yield BadRow("malformed_row", f"{len(fields)} fields, the header has {len(names)}")


def _header_lines(lines: Iterator[str]) -> list[str]:
    """Return the first line, and those after it into which a quoted name goes on."""
    head = [next(lines, "").removeprefix("\ufeff")]
    while head[-1] and "".join(head).count('"') % 2 and len(head) < 8:
        head.append(next(lines, ""))
    return head


def _fields(head: Sequence[str], delimiter: str) -> list[str]:
    try:
        return next(csv.reader(head, delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:  # a field above csv's limit
        return []


def _is_header(names: Iterable[str]) -> bool:
    return any(name.strip().lower() in IMAGES for name in names)


def is_csv_header(line: str) -> bool:
    """Return whether a line is the first one of a CSV: it names a column of images and another, or is ``sep=;``."""
    line = line.removeprefix("\ufeff").rstrip("\r\n")
    return bool(_MARK.fullmatch(line)) or any(
        _is_header(found) and len(found) > 1 for found in (_fields([line], each) for each in DELIMITERS)
    )


def _json_row(line: str) -> Row | BadRow:
    try:
        return _object(load_json(line))
    except BadRow as bad:
        return bad


def _object(row: Any) -> Row | BadRow:
    return row if isinstance(row, dict) else BadRow("malformed_row", f"expected an object, got {type(row).__name__}")


def _json_table(path: Path) -> Iterator[Row | BadRow]:
    """Yield the rows of a list of objects, of COCO's images and annotations, or of captions by the images' names.

    Raises:
        ValueError: The file is none of these.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"a .json is read as a whole, of at most {MAX_JSON_BYTES} bytes; write it as .jsonl")
    with open_text(path) as file:
        try:
            data = load_json(file.read())
        except BadRow as bad:
            raise ValueError(bad.detail) from None
    if isinstance(data, dict) and isinstance(images := data.get("images"), list):
        notes = data.get("annotations")
        yield from map(_object, images) if notes is None else _coco_rows(images, notes)
    elif isinstance(data, dict) and data and all(Path(name).suffix.lower() in EXTENSIONS for name in data):
        yield from ({"image": name, "caption": captions} for name, captions in data.items())
    elif isinstance(data, list):
        yield from map(_object, data)
    else:
        raise ValueError("expected a list of objects, or images and annotations as COCO has them")


def _coco_rows(images: Sequence[Any], notes: Any) -> Iterator[Row | BadRow]:
    """Join the captions of COCO's annotations to its images (https://cocodataset.org/#format-data)."""
    captions: defaultdict[Any, list[Any]] = defaultdict(list)
    for note in notes if isinstance(notes, list) else []:
        if isinstance(note, dict) and isinstance(note.get("image_id"), (int, str)) and "caption" in note:
            captions[note["image_id"]].append(note["caption"])
    for image in images:
        if not isinstance(image, dict) or not isinstance(image.get("id"), (int, str)):
            yield BadRow("malformed_row", "expected an image with an id")
        else:
            yield {"file_name": image.get("file_name"), "captions": captions.get(image["id"], [])}


def open_text(path: Path) -> Any:
    """Open a table as text; where it is not UTF-16, bytes that are not UTF-8 become lone surrogates."""
    with path.open("rb") as file:
        start = file.read(2)
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return path.open(encoding="utf-16", newline="")
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _delimiter(path: Path) -> str | None:
    return "\t" if path.suffix.lower() == ".tsv" else None
