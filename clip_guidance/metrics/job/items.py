"""What there is to score, one item after the other: images, folders, globs, tables, lines of standard input.

Nothing is kept in memory: of a folder only the names in it, of a table one row at a time.
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


def read_items(
    paths: Sequence[str | Path], prompt: str | None = None, lines: Iterable[str] = ()
) -> Iterator[ScoreItem]:
    """List the items that the paths stand for, in their order.

    A bad row of a table is an item that has a ``problem``.

    Args:
        paths: Images, folders (searched recursively), globs, tables (.csv, .tsv, .jsonl, .parquet) with the column
            image
            and maybe prompt; or the text ``-`` for ``lines``, where ``Path("-")`` is a file of this name.
        prompt: Prompt of every image that comes without one.
        lines: Paths, or JSON objects with ``image`` and maybe ``prompt``.

    Raises:
        SourceError: A table has no column of images.
    """
    for position, item in enumerate(item for path in paths for item in _items(path, lines)):
        yield replace(item, position=position, prompt=item.prompt if item.prompt is not None else prompt)


def is_table(path: Path) -> bool:
    """Say whether the name of a path is that of a table."""
    return path.suffix.lower() in SUFFIXES


def check_table(path: Path) -> None:
    """Look for one row of a table that can be scored, before a model is loaded.

    Raises:
        ValueError: The file is no table, has no column of images, or no row that gives an image; the message names the
            first bad row.
    """
    source, bad, first = _open_table(path), 0, ""
    for record in itertools.chain.from_iterable(map(source.read, range(len(source.parts)))):
        if not (problem := next(_of_record(record, path)).problem):
            return
        if record.key == path.name:  # the table itself
            raise ValueError(f"{path}: {problem}")
        bad, first = bad + 1, first or f"{record.key}: {problem}"
    raise ValueError(f"{path}: each of its {bad} rows is bad; the first is {first}" if bad else f"{path}: has no row")


def _items(given: str | Path, lines: Iterable[str]) -> Iterator[ScoreItem]:
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
            yield ScoreItem(str(image), str(image))
        if none:  # an item that fails by name, so that it does not pass unnoticed
            yield ScoreItem(str(path), str(path))


def _of_line(line: str) -> ScoreItem | None:
    text = line.removeprefix("\ufeff").strip()  # the byte order mark that some programs write first
    if not text.startswith("{"):
        return ScoreItem(text, text) if text else None
    try:
        row: Any = json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, or nested too deeply
        return ScoreItem(text[:60], None, problem=f"is no path and no JSON ({error})")
    image, prompt = row.get("image"), row.get("prompt")
    if not isinstance(image, str) or not image:
        return ScoreItem(text[:60], None, problem="has no image")
    if prompt is not None and not isinstance(prompt, str):
        return ScoreItem(image, None, problem=f"expected a text as its prompt, got {prompt!r}")
    return ScoreItem(image, image, prompt or None)


def _open_table(path: Path) -> TableSource:
    try:
        return TableSource([path], str(path), caption_columns=["prompt"])
    except SourceError:
        pass
    try:
        source = TableSource([path], str(path))  # captions by their customary names
    except SourceError:  # a table without captions; raises an error that says what there is
        return TableSource([path], str(path), caption_columns=["prompt"], need_captions=False)
    if columns := source.columns(path):
        found = ", ".join(columns.captions)
        warnings.warn(f"{path}: has no column prompt; images are compared with: {found}", stacklevel=2)
    return source


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
        return clean_captions(record.captions)[0]
    except BadRow as bad:
        if bad.reason == "no_caption":
            return [None]
        raise BadRow(bad.reason, f"prompt: {bad.detail}") from None
