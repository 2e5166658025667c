"""What flows through a reader: a part of a source, the record found in it, the pair made of that.

A source is cut into parts (a tar, a group of a table's rows, some files of a folder) that can be read in any order. A
record is what a row says before anything large is read: reading over records costs no image.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

REASONS = {
    "broken_file": "a table or archive that cannot be read, or not to its end",
    "malformed_row": "a line that is not JSON, or has more or fewer fields than the header",
    "unsafe_name": "an archive member that names a place outside of the archive",
    "no_caption": "no caption, or an empty one",
    "caption_not_text": "a caption that is a number, a list of lists, or not UTF-8",
    "no_image": "a row without an image, or with one that is not a path or bytes",
    "missing": "an image that is named and not there",
    "unreadable": "a file that may not be read, or is no file",
    "empty": "an image of 0 bytes",
    "too_many_bytes": "an image file above the limit",
    "unknown_format": "not an image, or in a format that is not supported",
    "too_large": "more pixels than the limit, known before they are decoded",
    "too_small": "a side shorter than the limit, such as a 1 × 1 spacer",
    "corrupt": "a truncated or corrupt image, or one in a colour mode that is not supported",
}


class BadRow(Exception):
    """A row that gives no pair.

    Args:
        reason: one of :data:`REASONS`.
        detail: what exactly was found.
    """

    def __init__(self, reason: str, detail: str):
        if reason not in REASONS:
            raise ValueError(f"expected one of {', '.join(REASONS)}, got {reason!r}")
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class SourceError(ValueError):
    """There is nothing to read, or it is not clear how; the message names what was found and what is supported."""


@dataclass(frozen=True)
class Pair:
    """An image and what it shows.

    Attributes:
        image: 8-bit RGB, upright and opaque; or what the reader's ``transform`` made of it.
        captions: one or more, without spaces around them, none twice.
        key: the image within its origin: a path, an archive's key, ``row 17``.
        origin: the file, folder or data set it came from.
    """

    image: Any
    captions: tuple[str, ...]
    key: str
    origin: str


class Stored(Protocol):
    """Bytes that are somewhere and not read yet."""

    def read(self, max_bytes: int) -> bytes:
        """The bytes.

        Raises:
            BadRow: they are not there, may not be read, or are more than ``max_bytes``.
        """


@dataclass(frozen=True)
class Record:
    """What a row says, with the large things not read yet.

    Attributes:
        key: as in :class:`Pair`.
        origin: as in :class:`Pair`.
        image: the encoded image, or where it is; None where there is none.
        captions: their values as found, or what reads them.
        problem: why the row is bad, where that is known already.
    """

    key: str
    origin: str
    image: bytes | Stored | None = None
    captions: Sequence[Any] | Callable[[], Sequence[Any]] = ()
    problem: BadRow | None = None


@dataclass(frozen=True)
class Part:
    """A piece of a source; ``rows`` is None where it takes reading the piece to know."""

    name: str
    rows: int | None


class Source(Protocol):
    """Where pairs come from.

    Attributes:
        name: what the user asked for.
        kind: what it turned out to be, such as "image folder".
        parts: its pieces, the same and in the same order each time it is opened.
    """

    name: str
    kind: str

    @property
    def parts(self) -> Sequence[Part]:
        """Its pieces."""

    def read(self, index: int) -> Iterator[Record]:
        """The records of ``parts[index]``, lazily, always in the same order; bad ones among them, never an error."""


@dataclass(frozen=True)
class StoredFile:
    """A file, or ``size`` bytes of it from ``offset`` on (a member of an archive)."""

    path: Path
    offset: int = 0
    size: int | None = None

    def read(self, max_bytes: int) -> bytes:
        """As :class:`Stored` says; what is no regular file (a device, a pipe) is never opened."""
        try:
            found = self.path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise BadRow("unreadable", f"{self.path} is not a file")
            size = found.st_size if self.size is None else self.size
            if size > max_bytes:
                raise BadRow("too_many_bytes", f"{size} bytes, more than max_bytes={max_bytes}")
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(size)
        except FileNotFoundError:
            raise BadRow("missing", f"no file {self.path}") from None
        except (OSError, ValueError) as error:  # denied, a loop of links, a name too long, a null byte in it
            raise BadRow("unreadable", f"{self.path}: {getattr(error, 'strerror', None) or error}") from None
        if len(data) < size:
            raise BadRow("broken_file", f"{self.path} ends {size - len(data)} bytes early")
        return data


def read_lines(stored: Stored, max_bytes: int = 1 << 20) -> list[str]:
    """The captions in a text file, one a line."""
    return [line for line in decode_text(stored.read(max_bytes)).splitlines() if line.strip()]


def decode_text(data: bytes) -> str:
    """UTF-8, with or without a byte-order mark.

    Raises:
        BadRow: it is something else.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRow("caption_not_text", f"not UTF-8 (byte {error.start})") from None


def caption_values(value: Any) -> list[Any]:
    """The captions that a cell, or a JSON object with ``caption`` or the like, holds."""
    if isinstance(value, Mapping):
        known = ("captions", "caption", "text", "txt", "raw", "title")
        return caption_values(next((value[name] for name in known if value.get(name)), None))
    if isinstance(value, (list, tuple)):
        return [
            found for entry in value for found in (caption_values(entry) if isinstance(entry, Mapping) else [entry])
        ]
    return [value]
