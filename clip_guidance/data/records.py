"""The types of reading: a source has parts, a part has records, and a record is decoded into a pair.

A source is divided into parts (a tar, a group of a table's rows, some files of a folder) that can be read in any order.
A record is what a row says before its image is read, so that skipping records is cheap.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from clip_guidance._files import stat_regular

REASONS = {
    "broken_file": "a table or archive that cannot be read, or not to its end",
    "malformed_row": "a line that is not JSON, or has more or fewer fields than the header",
    "unsafe_name": "an archive member that names a place outside of the archive",
    "no_caption": "no caption, or an empty one",
    "caption_not_text": "a caption that is a number, a list of lists, or not UTF-8",
    "no_image": "a row without an image, or with one that is not a path or bytes",
    "missing": "an image that is named and not there",
    "unreadable": "a file that may not be read, or is not a regular file",
    "empty": "an image of 0 bytes",
    "too_many_bytes": "an image file above the limit",
    "unknown_format": "not an image, or in a format that is not supported",
    "too_large": "more pixels than the limit, known before they are decoded",
    "too_small": "a side shorter than the limit, such as a 1 × 1 spacer",
    "corrupt": "a truncated or corrupt image, or one in a colour mode that is not supported",
}

MAX_DEPTH = 100  # of JSON: reading what is deeper would exhaust the stack
CAPTION_KEYS = (  # of a JSON object, in order of preference
    "captions", "caption", "text", "txt", "raw", "sentences", "sentence", "description", "title", "prompt",
)  # fmt: skip


class BadRow(Exception):
    """A row gives no pair.

    Args:
        reason: One of the keys of :data:`REASONS`.
        detail: What exactly was found.

    Attributes:
        reason: As given.
        detail: As given.

    Raises:
        ValueError: The reason is something else.

    Example:
        >>> from clip_guidance.data import BadRow
        >>> print(BadRow("empty", "is empty (0 bytes)"))
        empty: is empty (0 bytes)
    """

    def __init__(self, reason: str, detail: str):
        if reason not in REASONS:
            raise ValueError(f"expected one of {', '.join(REASONS)}, got {reason!r}")
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class SourceError(ValueError):
    """A source cannot be read; the message names what was found and what is supported.

    Example:
        >>> from clip_guidance.data import SourceError, open_pairs
        >>> try:
        ...     open_pairs("missing.csv")
        ... except SourceError as error:
        ...     print(str(error).partition(";")[0])
        missing.csv: there is no such file or folder
    """


@dataclass(frozen=True)
class Pair:
    """An image and its captions.

    Attributes:
        image: 8-bit RGB image, upright and opaque; or what the reader's ``transform`` made of it.
        captions: One or more, without spaces around them, none twice.
        key: Name of the image within its origin: a path, an archive's key, ``row 17``.
        origin: The file, folder or data set from which it was read.

    Example:
        >>> from PIL import Image
        >>> from clip_guidance.data import Pair
        >>> Pair(Image.new("RGB", (8, 8)), ("a red apple",), "1.png", "photos").captions
        ('a red apple',)
    """

    image: Any
    captions: tuple[str, ...]
    key: str
    origin: str


class Stored(Protocol):
    """Bytes that were not read yet."""

    def read(self, max_bytes: int) -> bytes:
        """Read the bytes.

        Raises:
            BadRow: The bytes are missing, may not be read, or are more than ``max_bytes``.
        """


@dataclass(frozen=True)
class Record:
    """What a row says, with its image not read yet.

    Attributes:
        key: Name of the image within its origin, see :class:`Pair`.
        origin: The file, folder or data set from which it was read.
        image: The encoded image, or what reads it; None where there is none.
        captions: The values of the captions as found, or a function that reads them.
        problem: Why the row is bad, where that is known already.
    """

    key: str
    origin: str
    image: bytes | Stored | None = None
    captions: Sequence[Any] | Callable[[], Sequence[Any]] = ()
    problem: BadRow | None = None


@dataclass(frozen=True)
class Part:
    """A piece of a source; ``rows`` is None where the number is known only after reading."""

    name: str
    rows: int | None


class Source(Protocol):
    """A source of image-caption pairs.

    Attributes:
        name: What the user asked for.
        kind: What it turned out to be, such as "image folder".
        parts: Its pieces, the same and in the same order each time it is opened.
    """

    name: str
    kind: str

    @property
    def parts(self) -> Sequence[Part]:
        """Pieces of the source, the same and in the same order each time it is opened."""

    def read(self, index: int) -> Iterator[Record]:
        """Yield the records of ``parts[index]``, always in the same order.

        What cannot be read is a record with a ``problem``; no error is raised.
        """


@dataclass(frozen=True)
class StoredFile:
    """A file, or ``size`` bytes of it from ``offset`` on (a member of an archive)."""

    path: Path
    offset: int = 0
    size: int | None = None

    def read(self, max_bytes: int) -> bytes:
        """Read the bytes, as :class:`Stored` says; a device or a pipe is never opened."""
        try:
            found = stat_regular(self.path)
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
    """Read the captions in a text file, one per line."""
    return [line for line in decode_text(stored.read(max_bytes)).splitlines() if line.strip()]


def decode_text(data: bytes) -> str:
    """Decode UTF-8, with or without a byte-order mark.

    Raises:
        BadRow: The bytes are something else.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRow("caption_not_text", f"not UTF-8 (byte {error.start}); save the text as UTF-8") from None


def load_json(text: str) -> Any:
    """Parse JSON that is nested at most :data:`MAX_DEPTH` deep.

    Raises:
        BadRow: The text is something else.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow("malformed_row", f"not JSON: {error}") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
        raise BadRow("malformed_row", f"not JSON: nested more than {MAX_DEPTH} deep")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        nested = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list))]
        level = [entry for entries in nested for entry in entries]
    return bool(level)


def caption_values(value: Any) -> list[Any]:
    """List the captions that a cell holds, or a JSON object with ``caption`` or the like."""
    if isinstance(value, Mapping):
        return caption_values(next((value[name] for name in _caption_keys(value) if value.get(name)), None))
    if isinstance(value, (list, tuple)):
        return [
            found for entry in value for found in (caption_values(entry) if isinstance(entry, Mapping) else [entry])
        ]
    return [value]


def _caption_keys(value: Mapping[Any, Any]) -> list[Any]:
    """List the keys under which a JSON object may hold its captions, the customary ones first."""
    return [*CAPTION_KEYS, *(key for key in value if isinstance(key, str) and "caption" in key.lower())]
