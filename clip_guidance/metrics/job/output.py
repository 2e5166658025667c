"""The file of scores: one row per image, text, definition and model, each with the whole record of its definition.

An image that failed has one row, with the reason in the column ``error`` and no score; whoever reads scores skips it.
The formats are those of :mod:`.tables`; in .parquet the records also stand in the schema's metadata, key
``clip_guidance``.
"""

from __future__ import annotations

import csv
import heapq
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from clip_guidance.images.metadata import METADATA_KEY
from clip_guidance.metrics.job.store import Failure, ScoreRow, ScoresError, record_id
from clip_guidance.metrics.job.tables import GROUP, import_pyarrow, unquoted, write_table

OWN = {  # the columns that every file has, with their types; the other columns are the record's
    "image": str, "prompt": str, "score": float, "guided": bool, "tokens": int, "truncated": bool, "hash": str,
    "error": str,
}  # fmt: skip

Scores = Iterable[tuple[ScoreRow, Mapping[str, Any]]]


def as_dict(row: ScoreRow, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as it stands in a file."""
    return {**{name: getattr(row, name, None) for name in OWN}, **record}


def write_scores(
    path: Path, scores: Scores, records: Sequence[Mapping[str, Any]], failures: Iterable[Failure] = ()
) -> None:
    """Write or replace a file of scores.

    Args:
        path: Path of the file; its suffix is the format.
        scores: Rows with their records, by their positions.
        records: All records that occur among them.
        failures: Images that have no score, by their positions, among which their rows stand.

    Raises:
        ScoresError: Parquet needs pyarrow, which is not installed.
    """
    names = list(dict.fromkeys(name for record in records for name in record if name not in OWN))
    scored = ((row.position, as_dict(row, record)) for row, record in scores)
    failed = (
        (failure.position, {**dict.fromkeys([*OWN, *names]), "image": failure.image, "error": failure.reason})
        for failure in failures
    )
    rows = (row for _, row in heapq.merge(scored, failed, key=lambda placed: placed[0]))
    columns = {**OWN, **{name: _kind(name, records) for name in names}}
    write_table(path, rows, columns, {METADATA_KEY: json.dumps(list(records), allow_nan=False)})


def _kind(name: str, records: Sequence[Mapping[str, Any]]) -> type:
    """Return the type of a column of the records; where they disagree, it is text."""
    found = {type(record[name]) for record in records if record.get(name) is not None}
    kind = found.pop() if len(found) == 1 else str
    return kind if kind in (bool, int, float) else str


def read_scores(path: Path) -> Iterator[tuple[ScoreRow, dict[str, Any]]]:
    """Read the rows of a file of scores with their records; a last line that was cut short is left out.

    So are the rows of images that failed.

    Raises:
        ScoresError: The file holds something else, or is damaged before its last line.
    """
    read = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[path.suffix]
    for number, row in enumerate(read(path), start=1):
        if row is not None and row.get("error"):
            continue
        known = row is not None and {"image", "prompt", "score", "definition"} <= set(row)
        if row is None or not known or not isinstance(row["image"], str):
            raise ScoresError(f"{path}: row {number}: expected scores as clip-guidance score writes them")
        record = _renamed({name: value for name, value in row.items() if name not in OWN and value not in (None, "")})
        try:
            yield _row(row, record, number), record
        except (TypeError, ValueError) as error:
            raise ScoresError(f"{path}: row {number}: {error}") from error


def is_torn(path: Path) -> bool:
    """Say whether a file of lines lacks the end of its last line."""
    if path.suffix == ".parquet" or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _row(row: Mapping[str, Any], record: Mapping[str, Any], number: int) -> ScoreRow:
    tokens = row.get("tokens")
    return ScoreRow(
        image=row["image"],
        prompt=row["prompt"] or "",
        record=record_id(record),
        position=number,
        hash=row.get("hash") or "",  # a row without a hash is never found, so its image is scored again
        score=float(row["score"]),
        guided=str(row.get("guided")) == "True",
        tokens=None if tokens in (None, "") else int(tokens),
        truncated=str(row.get("truncated")) == "True",
    )


def _renamed(record: dict[str, Any]) -> dict[str, Any]:
    """Give a CLIP-IQA of an earlier version its present name: the positional embedding has a column of its own now."""
    name = str(record["definition"])
    if not name.startswith("clip-iqa:") or "positional_embedding" in record:
        return record
    short = name.removesuffix(" with positional embedding")
    return {**record, "definition": short, "positional_embedding": name != short}


def _read_jsonl(path: Path) -> Iterator[dict[str, Any] | None]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield row if isinstance(row, dict) else None


def _read_csv(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the rows of a CSV file, each when the next one begins.

    The last row may have been cut short, also within quotes.
    """
    quotes, ended = 0, True

    def watched(file: IO[str]) -> Iterator[str]:
        nonlocal quotes, ended
        for line in file:
            quotes, ended = quotes + line.count('"'), line.endswith("\n")
            yield line

    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        lines = csv.reader(watched(file))
        try:
            header, held = next(lines, []), None
            for fields in lines:
                if held is not None:
                    yield held
                held = dict(zip(header, map(unquoted, fields), strict=True)) if len(fields) == len(header) else None
                if held is None and next(lines, None) is not None:
                    yield None
        except csv.Error as error:  # a field above the limit of the csv module
            raise ScoresError(f"{path}: line {lines.line_num}: {error}") from error
    if held is not None and ended and quotes % 2 == 0:
        yield held


def _read_parquet(path: Path) -> Iterator[dict[str, Any] | None]:
    pa, pq = import_pyarrow(path)
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(GROUP):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ScoresError(f"{path}: cannot be read ({error})") from error
