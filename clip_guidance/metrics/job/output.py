"""The file of scores: one row per image, text, definition and model, each with the whole record of its definition.

    .jsonl     one object per line
    .csv       a header and lines
    .parquet   row groups; the records also stand in the schema's metadata, key ``clip_guidance``

In .csv a text that begins with = + - or @ has an apostrophe before it, lest a spreadsheet compute it; it is read back
without.

A file is written beside its place and moved there when it is complete, so it is never half written.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

from clip_guidance._files import write_atomically
from clip_guidance.images.metadata import METADATA_KEY
from clip_guidance.metrics.job.store import ScoreRow, ScoresError, record_id

SUFFIXES = (".jsonl", ".csv", ".parquet")
OWN = ("image", "prompt", "score", "guided", "tokens", "truncated", "hash")  # the other columns are the record's
GROUP = 8192  # rows in memory at once
_FORMULA = re.compile("'*[=+\\-@\t\r]")  # the beginning of a cell that a spreadsheet computes, or of one that is quoted

Scores = Iterable[tuple[ScoreRow, Mapping[str, Any]]]


def as_dict(row: ScoreRow, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as it stands in a file."""
    return {**{name: getattr(row, name) for name in OWN}, **record}


def write_scores(path: Path, scores: Scores, records: Sequence[Mapping[str, Any]]) -> None:
    """Write or replace a file of scores.

    Args:
        path: Path of the file; its suffix is the format.
        scores: Rows with their records.
        records: All records that occur among them.

    Raises:
        ScoresError: Parquet needs pyarrow, which is not installed.
    """
    columns = list(dict.fromkeys([*OWN, *(name for record in records for name in record)]))
    rows = (as_dict(row, record) for row, record in scores)
    with write_atomically(path) as partial:
        if path.suffix == ".parquet":
            _write_parquet(partial, rows, columns, records)
        else:
            with partial.open("w", encoding="utf-8", newline="") as file:
                (_write_csv if path.suffix == ".csv" else _write_jsonl)(file, rows, columns)


def read_scores(path: Path) -> Iterator[tuple[ScoreRow, dict[str, Any]]]:
    """Read the rows of a file of scores with their records; a last line that was cut short is left out.

    Raises:
        ScoresError: The file holds something else, or is damaged before its last line.
    """
    read = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[path.suffix]
    for number, row in enumerate(read(path), start=1):
        known = row is not None and {"image", "prompt", "score", "definition"} <= set(row)
        if row is None or not known or not isinstance(row["image"], str):
            raise ScoresError(f"{path}: row {number}: expected scores as clip-guidance score writes them")
        record = _renamed({name: value for name, value in row.items() if name not in OWN and value not in (None, "")})
        try:
            yield _row(row, record, number), record
        except (TypeError, ValueError) as error:
            raise ScoresError(f"{path}: row {number}: {error}") from error


def check_output(path: Path) -> None:
    """Check, before the work, that scores can be written to a path; make its folder where there is none.

    Raises:
        ScoresError: The path is a folder, or parquet needs pyarrow, which is not installed.
        OSError: The folder cannot be made.
    """
    if path.suffix == ".parquet":
        _pyarrow(path)
    if path.is_dir():
        raise ScoresError(f"--output {path}: expected a file, got a folder")
    path.parent.mkdir(parents=True, exist_ok=True)


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


def _write_jsonl(file: IO[str], rows: Iterable[dict[str, Any]], _: Sequence[str]) -> None:
    file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def _write_csv(file: IO[str], rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> None:
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows({name: _quoted(value) for name, value in row.items()} for row in rows)


def _quoted(value: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet would compute; :func:`_unquoted` takes it away again."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _unquoted(value: str) -> str:
    return value[1:] if value.startswith("'") and _FORMULA.match(value) else value


def _write_parquet(
    path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> None:
    pa, pq = _pyarrow(path)
    own = {"score": pa.float64(), "guided": pa.bool_(), "tokens": pa.int64(), "truncated": pa.bool_()}
    kinds = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}

    def kind(name: str) -> Any:
        found = {type(record[name]) for record in records if record.get(name) is not None}
        return own.get(name) or (kinds.get(found.pop(), pa.string()) if len(found) == 1 else pa.string())

    about = {METADATA_KEY: json.dumps(list(records), allow_nan=False)}
    schema = pa.schema([(name, kind(name)) for name in columns], about)
    texts = [name for name in columns if schema.field(name).type == pa.string()]
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, GROUP)):
            for row in group:  # where records disagree on a column's type, it is text
                row.update({name: str(row[name]) for name in texts if row.get(name) is not None})
            writer.write_table(pa.Table.from_pylist(group, schema))


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
                held = dict(zip(header, map(_unquoted, fields), strict=True)) if len(fields) == len(header) else None
                if held is None and next(lines, None) is not None:
                    yield None
        except csv.Error as error:  # a field above the limit of the csv module
            raise ScoresError(f"{path}: line {lines.line_num}: {error}") from error
    if held is not None and ended and quotes % 2 == 0:
        yield held


def _read_parquet(path: Path) -> Iterator[dict[str, Any] | None]:
    pa, pq = _pyarrow(path)
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(GROUP):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ScoresError(f"{path}: cannot be read ({error})") from error


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ScoresError(f"{path}: parquet needs pyarrow: pip install 'clip-guidance[data]'") from None
    return pa, pq
