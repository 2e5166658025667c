"""What there is to score, one item after the other: images, folders, globs, tables, lines of standard input.

Nothing is kept: of a folder only the names in it, of a table a row at a time.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clip_guidance.data.decode import clean_captions
from clip_guidance.data.records import BadRow, Record, SourceError, StoredFile
from clip_guidance.data.sources.table import SUFFIXES, TableSource
from clip_guidance.images.find import find_images, walk_images

STDIN = "-"


@dataclass(frozen=True)
class Item:
    """An image and the text it is compared with.

    Attributes:
        name: its path as given, or the row of the table that holds its bytes.
        source: a path, the bytes of a file, or None where ``problem`` says why there is none.
        prompt: None for the one that is stored in the image, if any.
        problem: why it cannot be scored, where that is known already.
        position: among all items, from 0 on.
        row: of a table, that named the image: file and number.
    """

    name: str
    source: str | bytes | None
    prompt: str | None = None
    problem: str | None = None
    position: int = 0
    row: str = ""


def read_work(paths: Sequence[str | Path], prompt: str | None = None, lines: Iterable[str] = ()) -> Iterator[Item]:
    """The items that the paths stand for, in their order; a bad row of a table is one that has a ``problem``.

    Args:
        paths: images, folders (searched recursively), globs, tables (.csv, .tsv, .jsonl, .parquet) with the columns
            image and maybe prompt; or the text ``-`` for ``lines``, where ``Path("-")`` is a file of this name.
        prompt: of every image that comes without one.
        lines: paths, or JSON objects with ``image`` and maybe ``prompt``.

    Raises:
        SourceError: a table has no column of images.
    """
    for position, item in enumerate(item for path in paths for item in _items(path, lines)):
        yield replace(item, position=position, prompt=item.prompt if item.prompt is not None else prompt)


def is_table(path: Path) -> bool:
    """Whether its name is that of a table."""
    return path.suffix.lower() in SUFFIXES


def check_table(path: Path) -> None:
    """Looks for one row of a table that can be scored, so that a table without any is told before a model is loaded.

    Raises:
        ValueError: it is no table, has no column of images, or no row that gives one; names the first bad row.
    """
    source, bad, first = _open_table(path), 0, ""
    for record in itertools.chain.from_iterable(map(source.read, range(len(source.parts)))):
        if not (problem := next(_of_record(record, path)).problem):
            return
        if record.key == path.name:  # the table itself
            raise ValueError(f"{path}: {problem}")
        bad, first = bad + 1, first or f"{record.key}: {problem}"
    raise ValueError(f"{path}: each of its {bad} rows is bad; the first is {first}" if bad else f"{path}: has no row")


def _items(given: str | Path, lines: Iterable[str]) -> Iterator[Item]:
    path = Path(given)
    if given == STDIN:  # the text alone: as a path, ./- is the same as -
        yield from filter(None, map(_of_line, lines))
    elif is_table(path) and path.is_file():
        source = _open_table(path)
        for part in range(len(source.parts)):
            for record in source.read(part):
                yield from _of_record(record, path)
    else:
        none = True
        for image in walk_images(path) if path.is_dir() else find_images([path]):
            none = False
            yield Item(str(image), str(image))
        if none:  # fails by name instead of passing unnoticed
            yield Item(str(path), str(path))


def _of_line(line: str) -> Item | None:
    text = line.removeprefix("\ufeff").strip()  # the mark with which some programs begin what they write
    if not text.startswith("{"):
        return Item(text, text) if text else None
    try:
        row: Any = json.loads(text)
    except ValueError as error:
        return Item(text[:60], None, problem=f"is no path and no JSON ({error})")
    image, prompt = row.get("image"), row.get("prompt")
    if not isinstance(image, str) or not image:
        return Item(text[:60], None, problem="has no image")
    if prompt is not None and not isinstance(prompt, str):
        return Item(image, None, problem=f"expected a text as its prompt, got {prompt!r}")
    return Item(image, image, prompt or None)


def _open_table(path: Path) -> TableSource:
    try:
        return TableSource([path], str(path), caption_columns=["prompt"])
    except SourceError:
        pass
    try:
        source = TableSource([path], str(path))  # captions by their customary names
    except SourceError:  # without any; also an error that says what there is
        return TableSource([path], str(path), caption_columns=["prompt"], need_captions=False)
    if columns := source.columns(path):
        found = ", ".join(columns.captions)
        warnings.warn(f"{path}: has no column prompt; images are compared with: {found}", stacklevel=2)
    return source


def _of_record(record: Record, table: Path) -> Iterator[Item]:
    """An item for each of the row's prompts."""
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
        yield Item(name, None, problem=problem)
        return
    for prompt in prompts:
        if isinstance(record.image, StoredFile):
            yield Item(str(record.image.path), str(record.image.path), prompt, row=name)
        else:
            assert isinstance(record.image, bytes)
            yield Item(name, record.image, prompt, row=name)


def _prompts(record: Record) -> Sequence[str | None]:
    """The prompts of a row; None where it has none: a score may need none, and an image bring its own.

    Raises:
        BadRow: there is something else in their place.
    """
    try:
        return clean_captions(record.captions)[0]
    except BadRow as bad:
        if bad.reason == "no_caption":
            return [None]
        raise BadRow(bad.reason, f"prompt: {bad.detail}") from None
