"""Read WebDataset tars as img2dataset writes them: ``000017.jpg``, ``000017.txt`` and ``000017.json`` are one sample.

Consecutive files with the same name up to the first dot are a sample
(https://github.com/webdataset/webdataset#the-webdataset-format). Only images, .txt and .json are opened, never a
pickle, an array or a module, and nothing is unpacked to disk. Iterating over an archive reads its headers; an image is
read when its record is decoded.
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
MAX_TEXT_BYTES = 1 << 20  # of a caption or its metadata
MAX_MEMBER_BYTES = 64 << 20  # of a member of a compressed archive, which is read into memory
_BROKEN = (tarfile.TarError, OSError, EOFError, ValueError, lzma.LZMAError, zlib.error)


class TarSource:
    """Read the samples of archives, each of which is a part, as a :class:`.Source`.

    Args:
        paths: The archives.
        name: What the user asked for.
    """

    kind = "WebDataset tars"

    def __init__(self, paths: Sequence[Path], name: str):
        self.name, self.paths = name, list(paths)
        self.parts = [Part(path.name, None) for path in self.paths]

    def read(self, index: int) -> Iterator[Record]:
        """Yield the records of an archive; where it is cut or no tar, the last record says so."""
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
class _InMemory:
    """A member of a compressed archive: there is no way back to it, so its bytes are in memory."""

    data: bytes
    size: int

    def read(self, max_bytes: int) -> bytes:
        if self.size > min(max_bytes, len(self.data)):
            raise BadRow("too_many_bytes", f"{self.size} bytes, more than max_bytes={max_bytes}")
        return self.data


def _members(path: Path) -> Iterator[tuple[str, Stored]]:
    """Yield name and bytes of each regular file in the archive that may belong to a sample."""
    compressed = not _is_plain(path)
    with tarfile.open(path, "r|*" if compressed else "r:", errors="surrogateescape") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile would remember every header
            if not member.isreg() or member.sparse or not _is_wanted(member.name):
                continue
            if not compressed:
                yield member.name, StoredFile(path, member.offset_data, member.size)
            elif (file := archive.extractfile(member)) is not None:
                yield member.name, _InMemory(file.read(MAX_MEMBER_BYTES), member.size)
    if not compressed:
        _check_end(path, archive.offset)


def _check_end(path: Path, offset: int) -> None:
    """Check that the archive ends in a block of zeros, or in nothing as concatenated tars do.

    ``tarfile`` takes a garbled header for the end.

    Raises:
        tarfile.ReadError: There is something else.
    """
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
    """Split ``images/0001.seg.png`` into the sample ``images/0001`` and its member ``seg.png``."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()


def _record(key: str, origin: str, members: dict[str, Stored]) -> Record:
    if key.startswith("/") or ".." in PurePosixPath(key).parts:  # programs may name files after keys
        return Record(key, origin, problem=BadRow("unsafe_name", f"the archive names {key}"))
    image = next((stored for suffix, stored in members.items() if f".{suffix}" in EXTENSIONS), None)
    if "txt" in members:
        return Record(key, origin, image, functools.partial(read_lines, members["txt"], MAX_TEXT_BYTES))
    if "json" in members:
        return Record(key, origin, image, functools.partial(_read_json, members["json"]))
    return Record(key, origin, image)


def _read_json(stored: Stored) -> list[Any]:
    try:
        return caption_values(json.loads(decode_text(stored.read(MAX_TEXT_BYTES))))
    except (ValueError, RecursionError) as error:
        raise BadRow("malformed_row", f"not JSON: {error}") from None
