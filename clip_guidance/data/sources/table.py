"""Read tables with one row per image: CSV, TSV, JSONL, JSON, and parquet by row groups."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clip_guidance.data.records import BadRow, Part, Record, SourceError
from clip_guidance.data.sources.columns import Columns
from clip_guidance.data.sources.text_table import text_columns, text_rows

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
BATCH_ROWS = 64  # of a parquet file in memory at once
FOLDER_SEARCH_ROWS = 100  # of a table, by whose images the folder of its images is found
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "photos", "pictures")  # of several folders these are preferred


class AmbiguousFolderError(SourceError):
    """The images that a table names are in several folders."""


class TableSource:
    """Read the rows of one or more tables, as a :class:`.Source`.

    A part is a row group of a parquet file, or a whole text file. Relative paths start at the table's folder; where no
    image is there, at the one folder beside the table where images are (``Images/`` beside ``captions.txt``), or at a
    folder above that is named as one of images, or by the table (``annotations/captions_val2017.json``, ``val2017/``).

    Args:
        paths: The tables.
        name: What the user asked for.
        image_column: Column of the image; by default the first with a customary name.
        caption_columns: Columns of the captions; by default those with a customary name.
        need_captions: Whether a table must have a column of captions; see :meth:`Columns.find`.
        root: Folder outside of which no images are looked for; by default the one above that of a table.

    Raises:
        SourceError: A table has no column of images, no column of captions where it must have one, or its images are
            in several folders.
    """

    kind = "table"

    def __init__(
        self,
        paths: Sequence[Path],
        name: str,
        image_column: str | None = None,
        caption_columns: Sequence[str] = (),
        need_captions: bool = True,
        root: Path | None = None,
    ):
        self.name = name
        self.parts: list[Part] = []
        self._places: list[tuple[Path, int, int]] = []  # table, row group, number of its first row
        self._columns: dict[Path, Columns] = {}
        self._folders: dict[Path, Path] = {}
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
                self._folders[path] = _image_folder(path, self._columns[path], root)
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
        rows = _parquet_rows(path, group, columns) if path.suffix.lower() == ".parquet" else text_rows(path)
        for number in itertools.count(first):
            try:
                row = next(rows)
            except StopIteration:
                return
            except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's: damage, unknown codings
                for lost in range(number, max(number + 1, first + (self.parts[index].rows or 0))):
                    yield Record(f"row {lost}", origin, problem=BadRow("broken_file", f"{path}: {error}"))
                return
            if isinstance(row, BadRow):
                yield Record(f"row {number}", origin, problem=row)
            else:
                yield columns.record(row, f"row {number}", origin, self._folders[path])


def table_rows(path: Path) -> Iterator[Any]:
    """Yield all rows of a table, each a dict by column, or the :class:`.BadRow` that says why it is bad.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no table.
    """
    if path.suffix.lower() != ".parquet":
        yield from text_rows(path)
        return
    with _parquet(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            yield from batch.to_pylist()


def _layout(path: Path) -> tuple[list[str], list[int | None], dict[str, list[str]]]:
    """Return column names, the rows of each part where known, and class names by column."""
    if path.suffix.lower() != ".parquet":
        return text_columns(path), [None], {}
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
    return import_parquet(path).ParquetFile(path, pre_buffer=False)


def import_parquet(path: Path) -> Any:
    """Import ``pyarrow.parquet`` to read a table.

    Raises:
        SourceError: It is not installed; says what to install.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise SourceError(f"{path}: parquet needs pyarrow: pip install 'clip-guidance[data]'") from None
    return pq


def _image_folder(path: Path, columns: Columns, root: Path | None) -> Path:
    """Find the folder at which the relative paths of a table start.

    Raises:
        AmbiguousFolderError: The images are in several folders beside or below the table.
    """
    here = path.parent
    if path.suffix.lower() == ".parquet":  # holds the images, most often
        return here
    first = itertools.islice(text_rows(path), FOLDER_SEARCH_ROWS)
    values = (row.get(columns.image) for row in first if isinstance(row, dict))
    names = [value for value in values if isinstance(value, str) and value and "://" not in value]
    if not names or _holds(here, names):
        return here
    above = [] if root is not None and here == root else [here.parent]
    for folder in [here, *above]:
        with contextlib.suppress(OSError):
            below = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
            found = [entry for entry in below if _holds(entry, names)]
            own = path.stem.lower().rpartition("_")[2]  # COCO's captions_val2017.json is of val2017
            named = [entry for entry in found if entry.name.lower() in (*IMAGE_FOLDERS, own)]
            found = named if folder in above else named or found  # others above are of other data sets, maybe
            if len(found) > 1:
                raise AmbiguousFolderError(
                    f"{path}: {names[0]} is in {found[0].name}/ and in {found[1].name}/; "
                    "write the paths of the images in the table with their folder"
                )
            if found:
                return found[0]
    return here


def _holds(folder: Path, names: Sequence[str]) -> bool:
    """Return whether one of the files is in a folder."""
    return any(os.path.exists(folder / name) for name in names if "\0" not in name)
