"""What there is to score, one item after the other: images, folders, globs, tables, lines of standard input.

Prompts are read as training reads captions, by the readers of :mod:`clip_guidance.data`. Nothing is kept in memory: of
a folder only the names in it, of a table one row at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from clip_guidance.data.decode import clean_captions
from clip_guidance.data.open import caption_tables
from clip_guidance.data.records import BadRow, Record, SourceError, StoredFile, load_json
from clip_guidance.data.sources.columns import Columns
from clip_guidance.data.sources.folder import FolderSource, list_files
from clip_guidance.data.sources.table import SUFFIXES, TableSource
from clip_guidance.data.sources.text_table import csv_table, is_csv_header
from clip_guidance.images.find import find_images, walk_images

STDIN = "-"
T = TypeVar("T")


@dataclass(frozen=True)
class ScoreItem:
    """Name an image and the text it is compared with.

    Attributes:
        name: Path of the image as given, or the row of the table that holds its bytes.
        source: Path, the bytes of a file, or None where ``problem`` says why there is none.
        prompt: Text; None for the prompt that is stored in the image, if any.
        problem: Reason why the image cannot be scored, where that is known already.
        position: Place among all items, from 0 on.
        row: File and number of the table row that named the image; empty where no row did.
    """

    name: str
    source: str | bytes | None
    prompt: str | None = None
    problem: str | None = None
    position: int = 0
    row: str = ""


@dataclass(frozen=True)
class TableColumns:
    """Name the columns of a table that are read.

    Attributes:
        image: Column of images; None for the first one with a customary name.
        prompt: Column of prompts; None for the column prompt, or else those of captions with a customary name.
    """

    image: str | None = None
    prompt: str | None = None


CUSTOMARY = TableColumns()


def read_items(
    paths: Sequence[str | Path],
    prompt: str | None = None,
    lines: Iterable[str] = (),
    columns: TableColumns = CUSTOMARY,
) -> Iterator[ScoreItem]:
    """List the items that the paths stand for, in their order.

    A bad row of a table is an item that has a ``problem``.

    Args:
        paths: Images, folders (searched recursively, with the texts that training would read as captions), globs,
            tables (.csv, .tsv, .jsonl, .json, .parquet) with the column image and maybe prompt; or the text ``-`` for
            ``lines``, where ``Path("-")`` is a file of this name.
        prompt: Prompt of every image that comes without one.
        lines: Paths, JSON objects with ``image`` and maybe ``prompt``, or a CSV with a header.
        columns: Columns of the tables and of ``lines``; the tables of captions in folders keep their customary names.

    Raises:
        SourceError: A table has no column of images, or lacks one that is asked for.
    """
    for position, item in enumerate(item for path in paths for item in _items(path, lines, columns)):
        yield replace(item, position=position, prompt=item.prompt if item.prompt is not None else prompt)


def is_table(path: Path) -> bool:
    """Say whether the name of a path is that of a table."""
    return path.suffix.lower() in SUFFIXES


def check_table(path: Path, columns: TableColumns = CUSTOMARY) -> None:
    """Look for one row of a table that can be scored, before a model is loaded.

    Raises:
        ValueError: The file is no table, has no column of images, or no row that gives an image; the message names the
            first bad row.
    """
    bad, first = 0, ""
    for record in _records(_open_table(path, columns)):
        if not (problem := next(_of_record(record, path)).problem):
            return
        if record.key == path.name:  # the table itself
            raise ValueError(f"{path}: {problem}")
        bad, first = bad + 1, first or f"{record.key}: {problem}"
    raise ValueError(f"{path}: each of its {bad} rows is bad; the first is {first}" if bad else f"{path}: has no row")


def _items(given: str | Path, lines: Iterable[str], columns: TableColumns) -> Iterator[ScoreItem]:
    path = Path(given)
    if given == STDIN:  # the text alone: as a path, ./- is the same as -
        yield from _of_lines(lines, columns)
    elif is_table(path) and path.is_file():
        for record in _records(_open_table(path, columns)):
            yield from _of_record(record, path)
    elif os.path.isdir(path):  # not Path.is_dir, which raises where a folder above may not be entered
        yield from _of_folder(path)
    else:
        for image in find_images([path]):
            yield ScoreItem(str(image), str(image))


def _of_folder(folder: Path) -> Iterator[ScoreItem]:
    """Yield the images of a folder, with the prompts that training would read as their captions.

    Those are the rows of ``captions.csv`` and the like, and the texts beside images; the names of folders are none.
    """
    listing = list_files(folder)
    tables = [folder / file for file in caption_tables(listing, {})]
    named = set()
    for table in tables:
        for record in _records(_open_table(table, CUSTOMARY, folder)):
            for item in _of_record(record, table):
                named.add(os.path.normpath(item.name))
                yield item
    source = FolderSource(listing, class_names=False)
    if source.captioned:
        warnings.warn(f"{folder}: images are compared with the texts beside them, where they have one", stacklevel=2)
    none = not tables
    for image in walk_images(folder):
        if os.path.normpath(image) not in named:
            none = False
            yield from _of_image(source.record(os.path.relpath(image, folder)), str(image))
    if none:  # an item that fails by name, so that it does not pass unnoticed
        yield ScoreItem(str(folder), str(folder))


def _of_image(record: Record, name: str) -> Iterator[ScoreItem]:
    """Yield an item for each prompt of an image in a folder."""
    try:
        for prompt in _prompts(record):
            yield ScoreItem(name, name, prompt)
    except BadRow as bad:
        yield ScoreItem(name, None, problem=bad.detail)


def _of_lines(lines: Iterable[str], asked: TableColumns) -> Iterator[ScoreItem]:
    """Yield the items of standard input: paths, JSON objects, or a CSV whose first line names its columns."""
    lines = iter(lines)
    first = next(lines, "")
    if first.lstrip("\ufeff ").startswith("{") or not (is_csv_header(first) or asked != CUSTOMARY):
        yield from filter(None, (_of_line(line, asked) for line in itertools.chain([first], lines)))
        return
    table = Path("standard input")
    names, rows = csv_table(itertools.chain([first], lines))
    columns = _with_prompts(
        table,
        lambda captions, need: Columns.find(names, str(table), asked.image, captions, None, need),
        asked.prompt,
    )
    for number, row in enumerate(rows, start=1):
        key = f"row {number}"
        if isinstance(row, BadRow):
            record = Record(key, STDIN, problem=row)
        else:
            record = columns.record(row, key, STDIN, Path())
        yield from _of_record(record, table)


def _of_line(line: str, columns: TableColumns) -> ScoreItem | None:
    text = line.removeprefix("\ufeff").strip()  # the byte order mark that some programs write first
    if not text.startswith("{"):
        return ScoreItem(text, text) if text else None
    try:
        row: Any = load_json(text)
    except BadRow as bad:
        return ScoreItem(text[:60], None, problem=f"is no path and no JSON ({bad.detail.removeprefix('not JSON: ')})")
    image, prompt = row.get(columns.image or "image"), row.get(columns.prompt or "prompt")
    if not isinstance(image, str) or not image:
        return ScoreItem(text[:60], None, problem=f"has no {columns.image or 'image'}")
    if prompt is not None and not isinstance(prompt, str):
        return ScoreItem(image, None, problem=f"expected a text as its prompt, got {prompt!r}")
    return ScoreItem(image, image, prompt or None)


def _records(source: TableSource) -> Iterator[Record]:
    return itertools.chain.from_iterable(map(source.read, range(len(source.parts))))


def _open_table(path: Path, columns: TableColumns, root: Path | None = None) -> TableSource:
    return _with_prompts(
        path,
        lambda captions, need: TableSource([path], str(path), columns.image, captions, need, root),
        columns.prompt,
    )


def _with_prompts(table: Path, read: Callable[[Sequence[str], bool], T], prompt: str | None) -> T:
    """Read a table by the column that is asked for, else by its column prompt, its captions, or without any.

    Args:
        table: What the table is called in a warning.
        read: From the columns of captions that are asked for, and whether there must be any, to the columns that are
            read, or to a source with them.
        prompt: The column that is asked for.

    Raises:
        SourceError: The table has no column of images; the error says what there is.
    """
    if prompt is not None:
        return read([prompt], True)
    with contextlib.suppress(SourceError):
        return read(["prompt"], True)
    try:
        found = read([], True)  # captions by their customary names
    except SourceError:
        return read(["prompt"], False)
    columns = found.columns(table) if isinstance(found, TableSource) else found
    if isinstance(columns, Columns):
        what = ", ".join(columns.captions)
        warnings.warn(f"{table}: has no column prompt; images are compared with: {what}", stacklevel=2)
    return found


def _of_record(record: Record, table: Path) -> Iterator[ScoreItem]:
    """Yield an item for each prompt of a row."""
    name = str(table) if record.key == table.name else f"{table}: {record.key}"
    try:
        if record.problem is not None:
            raise record.problem
        if record.image is None:
            raise BadRow("no_image", "has no image")
        prompts = _prompts(record)
    except BadRow as bad:
        broken = bad.reason == "broken_file"
        problem = f"cannot be read as a table ({bad.detail.removeprefix(f'{table}: ')})" if broken else bad.detail
        yield ScoreItem(name, None, problem=problem)
        return
    for prompt in prompts:
        if isinstance(record.image, StoredFile):
            yield ScoreItem(str(record.image.path), str(record.image.path), prompt, row=name)
        else:
            assert isinstance(record.image, bytes)
            yield ScoreItem(name, record.image, prompt, row=name)


def _prompts(record: Record) -> Sequence[str | None]:
    """Return the prompts of a row; None where it has none.

    A score may need no prompt, and an image may bring its own.

    Raises:
        BadRow: Something else stands in the place of the prompts.
    """
    try:
        return clean_captions(record.captions() if callable(record.captions) else record.captions)[0]
    except BadRow as bad:
        if bad.reason == "no_caption":
            return [None]
        raise BadRow(bad.reason, f"prompt: {bad.detail}") from None
