"""Read WebDataset tars as img2dataset writes them: ``000017.jpg``, ``000017.txt`` and ``000017.json`` are one sample.

Files with the same name up to the first dot are a sample
(https://github.com/webdataset/webdataset#the-webdataset-format), and so are those with the same name up to the last dot
(``a.b.jpg``, ``a.b.txt``). Only images and texts are opened, never a pickle, an array or a module, and nothing is
unpacked to disk. Iterating over an archive reads its headers; an image is read when its record is decoded. What is
complete is passed on at once; the files of a sample that lies apart are kept until the rest of it comes.
"""

from __future__ import annotations

import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clip_guidance.data.records import BadRow, Part, Record, Stored, StoredFile
from clip_guidance.data.sources.members import TEXTS, Picked, class_names
from clip_guidance.images.find import EXTENSIONS

SUFFIXES = (".tar", ".tgz")
MAX_MEMBER_BYTES = 64 << 20  # of a member of a compressed archive, which is read into memory
MAX_WAITING_BYTES = 256 << 20  # of the members of samples that lie apart in a compressed archive
_BROKEN = (tarfile.TarError, OSError, EOFError, ValueError, lzma.LZMAError, zlib.error)


class TarSource:
    """Read the samples of archives, each of which is a part, as a :class:`.Source`.

    Args:
        paths: The archives.
        name: What the user asked for.
        image_column: Suffix of the images, such as ``input.jpg`` or ``jpg``; by default the one image of a sample.
        caption_columns: Suffixes of captions, or keys in the samples' .json; by default the customary ones.
    """

    kind = "WebDataset tars"

    def __init__(
        self, paths: Sequence[Path], name: str, image_column: str | None = None, caption_columns: Sequence[str] = ()
    ):
        self.name, self.paths = name, list(paths)
        self.image_column, self.caption_columns = image_column, tuple(caption_columns)
        self.parts = [Part(path.name, None) for path in self.paths]

    def read(self, index: int) -> Iterator[Record]:
        """Yield the records of an archive; where it is cut or no tar, the last record says so."""
        path, broken = self.paths[index], None
        samples = Samples(str(path), Picked(self.image_column, self.caption_columns, class_names(path.parent)))
        try:
            for name, stored in _members(path):
                yield from samples.add(name, stored)
        except _BROKEN as error:
            broken = BadRow("broken_file", f"{path}: {error}")
        yield from samples.rest()
        if broken is not None:
            yield Record(path.name, str(path), problem=broken)


class Samples:
    """Put the members of an archive together to samples as they come.

    Args:
        origin: Name of the archive.
        picked: Which members are read.
    """

    def __init__(self, origin: str, picked: Picked):
        self.origin, self.picked = origin, picked
        self.key = ""  # of the group of members at hand: their names up to the first dot
        self.members: dict[str, Stored] = {}  # of the group, by the suffix behind the first dot
        self.done: list[str] = []  # of the group: the stems of the samples that were yielded
        self.waiting: dict[str, dict[str, Stored]] = {}  # groups without an image or a text, by their keys
        self.held = 0  # bytes in memory that wait

    def add(self, name: str, stored: Stored) -> Iterator[Record]:
        """Yield the records that are complete once the next member is there."""
        key, suffix = _split(name)
        if key != self.key or suffix in self.members:
            yield from self._end_group()
            if suffix in self.waiting.get(key, {}):  # the same file again, in archives that were joined
                yield from self._waited(key)
            self.key, self.members, self.done = key, {}, []
        elif self.members and _stem(suffix) != (before := _stem(next(reversed(self.members)))):
            yield from self._complete(before)
        self.members[suffix] = stored

    def rest(self) -> Iterator[Record]:
        """Yield the records of what is left when the archive ends."""
        yield from self._end_group()
        for key in list(self.waiting):
            yield from self._waited(key)

    def _complete(self, stem: str) -> Iterator[Record]:
        """Yield the sample of the members with this stem, if it has an image and a text."""
        own = {suffix: stored for suffix, stored in self.members.items() if _stem(suffix) == stem}
        plain = {_last(suffix): stored for suffix, stored in own.items()}
        if self._by_name() or self.key in self.waiting or not self._is_whole(plain):
            return
        for suffix in own:
            del self.members[suffix]
        self.done.append(stem)
        yield self._record(f"{self.key}.{stem}" if stem else self.key, plain)

    def _end_group(self) -> Iterator[Record]:
        """Yield the samples of a group, and let what is not complete wait for the rest of it."""
        if self.key not in self.waiting:  # else the archive holds files of a kind together: any kind may still come
            yield from self._whole()
        if self.members:
            self.waiting.setdefault(self.key, {}).update(self.members)
            self.held += sum(map(_held, self.members.values()))
        while self.held > MAX_WAITING_BYTES:
            yield from self._waited(next(iter(self.waiting)))

    def _whole(self) -> Iterator[Record]:
        """Yield the complete samples of a group, and keep its other members."""
        for stem in dict.fromkeys(map(_stem, self.members)):
            yield from self._complete(stem)
        # behind a sample of its own, a.seg.png is a further file of a
        self.members = {suffix: stored for suffix, stored in self.members.items() if not self._is_further(suffix)}
        named = not self.done and all(re.fullmatch(r"[a-z]\w*(\.\w+)*", suffix) for suffix in self.members)
        if (self._by_name() or named) and self._is_whole(
            self.members
        ):  # input.jpg and outputs.txt, not 01.jpg and 02.txt
            members, self.members = self.members, {}
            yield self._record(self.key, members)

    def _waited(self, key: str) -> Iterator[Record]:
        """Yield the samples of a group of which no more comes."""
        self.key, self.members, self.done = key, self.waiting.pop(key), []
        self.held -= sum(map(_held, self.members.values()))
        yield from self._whole()
        if self._by_name() and self.members:
            yield self._record(key, self.members)
            return
        for stem in dict.fromkeys(map(_stem, self.members)):
            own = {_last(suffix): stored for suffix, stored in self.members.items() if _stem(suffix) == stem}
            yield self._record(f"{key}.{stem}" if stem else key, own)

    def _is_further(self, suffix: str) -> bool:
        stem = _stem(suffix)
        return any(stem == done or done == "" or stem.startswith(f"{done}.") for done in self.done)

    def _by_name(self) -> bool:
        return self.picked.image is not None or bool(self.picked.captions)

    def _is_whole(self, members: dict[str, Stored]) -> bool:
        return self.picked.image_of(members) is not None and bool(self.picked.texts_of(members))

    def _record(self, key: str, members: dict[str, Stored]) -> Record:
        if key.startswith("/") or ".." in PurePosixPath(key).parts:  # programs may name files after keys
            return Record(key, self.origin, problem=BadRow("unsafe_name", f"the archive names {key}"))
        image = self.picked.image_of(members)
        captions = self.picked.captions_of({suffix: stored for suffix, stored in members.items() if suffix != image})
        return Record(key, self.origin, members[image] if image else None, captions)


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
    return file.suffix.lower() in EXTENSIONS | {f".{text}" for text in TEXTS} and not file.name.startswith(".")


def _split(name: str) -> tuple[str, str]:
    """Split ``images/0001.seg.png`` into the sample ``images/0001`` and its member ``seg.png``."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()


def _stem(suffix: str) -> str:
    return suffix.rpartition(".")[0]


def _last(suffix: str) -> str:
    return suffix.rpartition(".")[2]


def _held(stored: Stored) -> int:
    return stored.size if isinstance(stored, _InMemory) else 0
