"""Choose among the files of a sample, by their suffixes (``jpg``, ``txt``, ``json``), the image and the captions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_guidance.data.records import BadRow, Stored, caption_values, decode_text, load_json, read_lines
from clip_guidance.images.find import EXTENSIONS

TEXTS = ("txt", "text", "caption", "captions", "cls", "json")  # suffixes of captions, in order of preference
MAX_TEXT_BYTES = 1 << 20  # of a caption or its metadata


@dataclass(frozen=True)
class Picked:
    """Which files of a sample are read.

    Attributes:
        image: Suffix of the image, such as ``input.jpg``, ``input`` or ``jpg``; None for the one image there is.
        captions: Suffixes of captions, or keys in the sample's .json; empty for the customary ones, of which the first
            that holds a text counts.
        classes: Names of the classes by the numbers in files ``.cls``.
    """

    image: str | None = None
    captions: Sequence[str] = ()
    classes: Sequence[str] = field(default_factory=tuple)

    def image_of(self, members: Mapping[str, Any]) -> str | None:
        """Return the suffix of the image among those of a sample; None where there is none, or no single one."""
        images = [suffix for suffix in members if f".{_last(suffix)}" in EXTENSIONS]
        if self.image is not None:
            return next((suffix for suffix in images if _is_called(suffix, self.image)), None)
        plain = [suffix for suffix in images if "." not in suffix] or images
        return plain[0] if len(plain) == 1 or (plain and "." not in plain[0]) else None

    def texts_of(self, members: Mapping[str, Any]) -> list[str]:
        """List the suffixes of the files that may hold the captions of a sample, in order."""
        texts = [suffix for suffix in members if _last(suffix) in TEXTS]
        if self.captions:
            called = [suffix for name in self.captions for suffix in texts if _is_called(suffix, name)]
            return called or [suffix for suffix in texts if _last(suffix) == "json"]
        plain = [suffix for suffix in texts if "." not in suffix]
        return sorted(plain or (texts if len(texts) == 1 else []), key=lambda suffix: TEXTS.index(_last(suffix)))

    def captions_of(self, members: Mapping[str, Stored]) -> Callable[[], Sequence[Any]]:
        """Return what reads the captions of a sample."""
        return functools.partial(self._read, dict(members))

    def _read(self, members: Mapping[str, Stored]) -> list[Any]:
        found: list[Any] = []
        problem: BadRow | None = None
        for suffix in self.texts_of(members):
            try:
                values = self._values(suffix, members[suffix])
            except BadRow as bad:
                if self.captions:
                    raise
                problem = problem or bad
                continue
            found += values
            if not self.captions and any(not isinstance(value, str) or value.strip() for value in values if value):
                return values
        if problem is not None and not any(found):
            raise problem
        if self.captions and not found:
            have = ", ".join(members)
            raise BadRow("no_caption", f"there is no {', '.join(self.captions)} in the sample; it has {have:.100}")
        return found

    def _values(self, suffix: str, stored: Stored) -> list[Any]:
        if _last(suffix) == "json":
            data = load_json(decode_text(stored.read(MAX_TEXT_BYTES)))
            if (
                self.captions
                and isinstance(data, Mapping)
                and not any(_is_called(suffix, name) for name in self.captions)
            ):
                return [value for name in self.captions if name in data for value in caption_values(data[name])]
            return caption_values(data)
        lines = read_lines(stored, MAX_TEXT_BYTES)
        return [self._class_name(line) for line in lines] if _last(suffix) == "cls" else list(lines)

    def _class_name(self, line: str) -> str:
        if not line.strip().isdecimal():
            return line
        if int(line) >= len(self.classes):
            raise BadRow(
                "caption_not_text", f"class {line.strip():.20} has no name; list them in classnames.txt beside it"
            )
        return self.classes[int(line)]


def class_names(folder: Path) -> list[str]:
    """Read the names of classes, one per line, from ``classnames.txt`` in a folder or the one above it."""
    for path in (folder / "classnames.txt", folder.parent / "classnames.txt"):
        if path.is_file():
            return [name.strip() for name in path.read_text("utf-8-sig", errors="surrogateescape").splitlines()]
    return []


def _last(suffix: str) -> str:
    return suffix.rpartition(".")[2]


def _is_called(suffix: str, name: str) -> bool:
    """Return whether ``input.jpg`` is meant by a name: ``input.jpg``, ``input`` or ``jpg``."""
    return name.lower().lstrip(".") in (suffix, suffix.rpartition(".")[0], _last(suffix))
