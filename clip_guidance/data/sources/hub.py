"""Read data sets of the Hugging Face Hub, streamed or downloaded, and those that ``datasets`` saved to disk.

The package ``datasets`` finds and downloads the files; images stay encoded (``decode=False``), because its own decoding
ends the iteration at the first truncated image. Needs the extra ``data``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_guidance.data.records import BadRow, Part, Record, SourceError
from clip_guidance.data.sources.columns import Columns

PART_ROWS = 1000  # of a downloaded data set; the parts of a streamed one are its files


class HubSource:
    """Read the rows of a data set, as a :class:`.Source`.

    Args:
        name: ``owner/name`` on the Hub, ``owner/name:config``, or a folder that ``datasets`` can load or has saved.
        split: Split of the data set, such as "train".
        streaming: Whether to read while downloading, a file at a time, instead of downloading everything first.
        image_column: Column of the image; by default the one whose type is Image, or with a customary name.
        caption_columns: Columns of the captions; by default those with a customary name.

    Raises:
        SourceError: The package ``datasets`` is not installed, or there is no such data set, split or column.
    """

    kind = "datasets"

    def __init__(
        self,
        name: str,
        split: str = "train",
        streaming: bool = True,
        image_column: str | None = None,
        caption_columns: Sequence[str] = (),
    ):
        self.name, self.split = name, split
        try:
            import datasets
        except ImportError:
            raise SourceError(
                f"{name}: no table, tar or folder of images is here; what is on the Hub, or saved by datasets, needs "
                "pip install 'clip-guidance[data]'"
            ) from None
        try:
            rows = _load(datasets, name, split, streaming)
        except Exception as error:  # whatever the Hub, its client or a builder raises
            raise SourceError(f"{name}: cannot be opened as a data set: {error}") from error
        images = [key for key, kind in (rows.features or {}).items() if isinstance(kind, datasets.Image)]
        for image in images:
            rows = rows.cast_column(image, datasets.Image(decode=False))
        names = rows.column_names or list(next(iter(rows), {}))
        image_column = image_column or next(iter(images), None)
        kinds = (rows.features or {}).items()
        classes = {key: kind.names for key, kind in kinds if isinstance(kind, datasets.ClassLabel)}
        self.columns = Columns.find(names, f"{name}[{split}]", image_column, caption_columns, classes)
        self.rows = rows.select_columns([n for n in names if n in ("__key__", *self.columns.names)])
        if isinstance(self.rows, datasets.IterableDataset):
            self.parts = [Part(f"file {i}", None) for i in range(self.rows.num_shards)]
        else:
            count = len(self.rows)
            self.parts = [Part(f"rows {i}", min(PART_ROWS, count - i)) for i in range(0, count, PART_ROWS)]

    def read(self, index: int) -> Iterator[Record]:
        """Yield the records of a part; where the data set breaks off, the last record says so."""
        part = self.parts[index]
        origin = f"{self.name}[{self.split}] {part.name}"
        number = 0
        try:
            for number, row in enumerate(self._rows(index), start=1):
                key = str(row.get("__key__", f"row {number}"))
                yield self.columns.record(row, key, origin, Path(), StoredRemote)
        except Exception as error:  # a download that failed for good, a broken file: whatever the builders raise
            problem = BadRow("broken_file", f"after row {number}: {str(error) or type(error).__name__}")
            yield Record(f"row {number + 1}", origin, problem=problem)

    def _rows(self, index: int) -> Any:
        part = self.parts[index]
        if part.rows is None:
            return self.rows.shard(num_shards=len(self.parts), index=index)
        return self.rows.select(range(index * PART_ROWS, index * PART_ROWS + part.rows))


@dataclass(frozen=True)
class StoredRemote:
    """A file that ``datasets`` names by address (``hf://``, ``zip://``) read when it is decoded."""

    address: str

    def read(self, max_bytes: int) -> bytes:
        """Read the bytes, as :class:`~clip_guidance.data.records.Stored` says."""
        import fsspec

        try:
            with fsspec.open(self.address, "rb") as file:
                data: bytes = file.read(max_bytes + 1)
        except FileNotFoundError:
            raise BadRow("missing", f"no file {self.address}") from None
        except Exception as error:  # of any of fsspec's backends
            raise BadRow("unreadable", f"{self.address}: {str(error) or type(error).__name__}") from None
        if len(data) > max_bytes:
            raise BadRow("too_many_bytes", f"more than max_bytes={max_bytes}")
        return data


def _load(datasets: Any, name: str, split: str, streaming: bool) -> Any:
    if Path(name, "state.json").is_file() or Path(name, "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(name)
        return saved[split] if isinstance(saved, dict) else saved
    path, _, config = (name, "", "") if Path(name).exists() else name.partition(":")
    return datasets.load_dataset(path, config or None, split=split, streaming=streaming)
