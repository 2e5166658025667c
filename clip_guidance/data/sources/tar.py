"""WebDataset tars as img2dataset writes them: ``000017.jpg``, ``000017.txt`` and ``000017.json`` make one sample.

Files with the same name up to the first dot, one after the other, are a sample
(https://github.com/webdataset/webdataset#the-webdataset-format). Only images, .txt and .json are opened: no pickle,
array or module is, and nothing is unpacked to disk. Going over an archive reads its headers; an image is read when it
is its turn.
"""

from __future__ import annotations

import functools
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from clip_guidance.data.records import BadRow, Part, Record, Stored, StoredFile, caption_values, decode_text, read_lines
from clip_guidance.images.load import EXTENSIONS

SUFFIXES = (".tar", ".tgz")
TEXT_BYTES = 1 << 20  # of a caption or its metadata
HELD_BYTES = 64 << 20  # of one member of a compressed archive
_BROKEN = (tarfile.TarError, OSError, EOFError, ValueError, lzma.LZMAError, zlib.error)


class TarSource:
    """Samples of one or more archives, each a part; a :class:`~clip_guidance.data.records.Source`."""

    kind = "WebDataset tars"

    def __init__(self, paths: Sequence[Path], name: str):
        self.name, self.paths = name, list(paths)
        self.parts = [Part(path.name, None) for path in self.paths]

    def read(self, index: int) -> Iterator[Record]:
        """The records of an archive; where it ends early or is none, the last record says so."""
        path = self.paths[index]
        key = ""
        members: dict[str, Stored] = {}
        try:
            for name, stored in _members(path):
                stem, suffix = _split(name)
                if members and (stem != key or suffix in members):
                    yield _record(key, str(path), members)
                    members = {}
                key = stem
                members[suffix] = stored
            broken = None
        except _BROKEN as error:
            broken = BadRow("broken_file", f"{path}: {error}")
        if members:
            yield _record(key, str(path), members)
        if broken is not None:
            yield Record(path.name, str(path), problem=broken)


@dataclass(frozen=True)
class _Held:
    """A member of a compressed archive: it cannot be found again, so it is held."""

    data: bytes
    size: int

    def read(self, max_bytes: int) -> bytes:
        if self.size > min(max_bytes, len(self.data)):
            raise BadRow("too_many_bytes", f"{self.size} bytes, more than max_bytes={max_bytes}")
        return self.data


def _members(path: Path) -> Iterator[tuple[str, Stored]]:
    """Name and bytes of each regular file in the archive."""
    compressed = not _is_plain(path)
    with tarfile.open(path, "r|*" if compressed else "r:", errors="surrogateescape") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile would remember every header
            if not member.isreg() or member.sparse or not _is_wanted(member.name):
                continue
            if not compressed:
                yield member.name, StoredFile(path, member.offset_data, member.size)
            elif (file := archive.extractfile(member)) is not None:
                yield member.name, _Held(file.read(HELD_BYTES), member.size)
    if not compressed:
        _check_end(path, archive.offset)


def _check_end(path: Path, offset: int) -> None:
    """tarfile takes a garbled header for the end, which is a block of zeros (or nothing, where tars were joined)."""
    with path.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"garbled header at byte {offset}")


def _is_plain(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(265)[257:262] == b"ustar"


def _is_wanted(name: str) -> bool:
    file = PurePosixPath(name)
    return file.suffix.lower() in EXTENSIONS | {".txt", ".json"} and not file.name.startswith(".")


def _split(name: str) -> tuple[str, str]:
    """``images/0001.seg.png`` is the member ``seg.png`` of the sample ``images/0001``."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()


def _record(key: str, origin: str, members: dict[str, Stored]) -> Record:
    if key.startswith("/") or ".." in PurePosixPath(key).parts:  # a user may name files after keys
        return Record(key, origin, problem=BadRow("unsafe_name", f"the archive names {key}"))
    image = next((stored for suffix, stored in members.items() if f".{suffix}" in EXTENSIONS), None)
    if "txt" in members:
        return Record(key, origin, image, functools.partial(read_lines, members["txt"], TEXT_BYTES))
    if "json" in members:
        return Record(key, origin, image, functools.partial(_read_json, members["json"]))
    return Record(key, origin, image)


def _read_json(stored: Stored) -> list[Any]:
    try:
        return caption_values(json.loads(decode_text(stored.read(TEXT_BYTES))))
    except (ValueError, RecursionError) as error:
        raise BadRow("malformed_row", f"not JSON: {error}") from None
