"""Prompts from a file: a text with one per line, or a table whose columns are settings of the images.

A row that cannot be used says why, and the others are read. Nothing here loads a model.
"""

from __future__ import annotations

import csv
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from clip_guidance.data.records import BadRow
from clip_guidance.data.sources.table import SUFFIXES, table_rows
from clip_guidance.data.sources.text_table import open_text
from clip_guidance.generation.settings import GenerateSettings
from clip_guidance.generation.targets import ImageFile, PlacedTarget

LINES = ".txt"
_FIXED = {"model", "clip", "judge", "scheduler", "rewards"}  # of all images: each row would load models of its own
_KINDS = {each.name: str(each.type).partition(" | ")[0] for each in fields(GenerateSettings)}
COLUMNS = tuple(name for name in _KINDS if name not in _FIXED)
_SYNONYMS = {"clip_image": "clip_images", "region": "regions"}  # by the name of the option, which is repeated


@dataclass(frozen=True)
class PromptRow:
    """Hold a row of a file of prompts.

    Attributes:
        number: Its line in a text, or its number in a table, from 1 on.
        values: Settings of :class:`~clip_guidance.generation.settings.GenerateSettings` that the row gives.
        problem: Why the row cannot be used; empty where it can.
    """

    number: int
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def read_prompts(path: Path) -> list[PromptRow]:
    r"""Read a file of prompts.

    Args:
        path: A ``.txt`` with one prompt per line, or a table (.csv, .tsv, .jsonl, .json, .parquet) with a column
            ``prompt`` and any of ``COLUMNS``, in any case, with spaces or hyphens for underscores. An empty cell gives
            nothing. Paths of images start at the folder of the table.

    Raises:
        ValueError: The file is of another kind, cannot be read, has no row, or no column of prompts.

    Warns:
        UserWarning: Columns are not read.

    Example:
        >>> import tempfile
        >>> from clip_guidance.generation.prompts import read_prompts
        >>> path = Path(tempfile.mkdtemp(), "prompts.csv")
        >>> _ = path.write_text("prompt,Negative Prompt,seed\na red apple,worm,7\na pear,,\n")
        >>> for row in read_prompts(path):
        ...     print(row.number, dict(row.values))
        1 {'prompt': 'a red apple', 'negative_prompt': 'worm', 'seed': 7}
        2 {'prompt': 'a pear'}
    """
    suffix = path.suffix.lower()
    if suffix not in (LINES, *SUFFIXES):
        raise ValueError(f"{path}: expected a {LINES} with one prompt per line, or a table ({', '.join(SUFFIXES)})")
    try:
        rows = list(_lines(path) if suffix == LINES else table_rows(path))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({str(error).removeprefix(f'{path}: '):.150})") from None
    if not rows:
        raise ValueError(f"{path}: holds no prompt")
    if suffix == LINES:
        return [_prompt_row(number, {"prompt": text}, path.parent) for number, text in rows]
    found = dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row)
    settings = {name: _setting(name) for name in found}
    if found and "prompt" not in settings.values():
        raise ValueError(f"{path}: no column prompt; it has {', '.join(map(repr, found)):.150}")
    if unread := [name for name in found if settings[name] not in COLUMNS]:
        warnings.warn(
            f"{path}: these columns are not read: {', '.join(unread):.150}; the models, the scheduler and the rewards "
            "are those of the command line",
            stacklevel=2,
        )
    return [
        PromptRow(number, problem=row.detail)
        if isinstance(row, BadRow)
        else _prompt_row(number, {settings[name]: row[name] for name in row if settings[name] in COLUMNS}, path.parent)
        for number, row in enumerate(rows, start=1)
    ]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty, with their numbers."""
    with open_text(path) as file:
        yield from ((number, line.strip()) for number, line in enumerate(file, start=1) if line.strip())


def _setting(column: str) -> str:
    """Return the setting that a column is named after."""
    name = column.strip().lower().replace(" ", "_").replace("-", "_")
    return _SYNONYMS.get(name, name)


def _prompt_row(number: int, cells: Mapping[str, Any], folder: Path) -> PromptRow:
    try:
        values = {name: _value(name, cell, folder) for name, cell in cells.items() if not _is_empty(cell)}
    except ValueError as error:
        return PromptRow(number, problem=str(error))
    return PromptRow(number, values, "" if "prompt" in values else "has no prompt")


def _is_empty(cell: Any) -> bool:
    return cell is None or cell == [] or (isinstance(cell, str) and not cell.strip()) or _is_nan(cell)


def _is_nan(cell: Any) -> bool:
    return isinstance(cell, float) and math.isnan(cell)  # a missing number, as pandas writes it


def _value(name: str, cell: Any, folder: Path) -> Any:
    """Read a cell as the setting's type; what is not of it is told by the settings' own check.

    Raises:
        ValueError: The cell is no list of images or regions, or one of them cannot be read.
    """
    readers: dict[str, Callable[[str], Any]] = {
        "clip_images": lambda text: ImageFile.read(os.path.join(folder, text)),
        "regions": lambda text: PlacedTarget.parse(text, str(folder)),
    }
    if reader := readers.get(name):
        texts = cell if isinstance(cell, list) else [cell]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name} must be a text, or a list of texts, got {cell!r:.80}")
        return tuple(reader(text) for text in texts if text)
    try:
        if _KINDS[name] == "int" and isinstance(cell, str):
            return int(cell)
        if _KINDS[name] == "int" and isinstance(cell, float) and cell.is_integer():
            return int(cell)  # a column with empty cells, as pandas writes it
        return float(cell) if _KINDS[name] == "float" and isinstance(cell, str) else cell
    except ValueError:
        return cell
