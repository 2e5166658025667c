"""Find the columns of a table that hold the image and its captions, and turn its rows into records."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from clip_guidance.data.records import BadRow, Record, SourceError, Stored, StoredFile, caption_values

# In order of preference: the first name that a table has is taken.
IMAGES = (
    "image", "img", "picture", "photo", "image_bytes", "file_name", "filename", "filepath", "file_path", "image_path",
    "image_name", "image_file", "path", "file", "jpg", "jpeg", "png", "webp",
)  # fmt: skip
CAPTIONS = ("caption", "text", "txt", "sentence", "description", "title", "prompt", "comment", "json", "name", "label")


Remote: TypeAlias = Callable[[str], Stored]


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read.

    Attributes:
        image: Name of the column that holds paths, bytes, or ``{"bytes", "path"}`` as in ``datasets``.
        captions: Names of the columns that hold a caption or a list of captions each.
        classes: For each column of class numbers, the names of the classes (``ClassLabel`` of ``datasets``).
    """

    image: str
    captions: tuple[str, ...]
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def find(
        cls,
        names: Sequence[str],
        where: str,
        image: str | None = None,
        captions: Sequence[str] = (),
        classes: Mapping[str, Sequence[str]] | None = None,
        need_captions: bool = True,
    ) -> Columns:
        """Find the columns asked for, or else those with a customary name.

        Customary are, for captions, ``text``, ``captions``, or ``caption_0``, ``caption_1`` and so on.

        Args:
            names: The columns that the table has.
            where: What the table is called in a message.
            image: The column of images; by default the first with a customary name.
            captions: The columns of captions; by default those with a customary name.
            classes: See the attribute.
            need_captions: Whether the table must have captions; otherwise the columns asked for are read from the rows
                that have them.

        Raises:
            SourceError: A column is missing; the message names the columns there are.
        """
        needed = (image, *captions) if need_captions else (image,)
        if absent := [name for name in needed if name and name not in names]:
            raise SourceError(f"{where}: no column {', '.join(absent):.60}; it has {_listed(names)}")
        image = image or next((n for known in IMAGES for n in names if n.lower() == known), None)
        captions = captions or next(filter(None, (_numbered(known, names) for known in CAPTIONS)), [])
        for column, meant, known in ((image, "images", IMAGES), (captions, "captions", CAPTIONS)):
            if not column and (need_captions or meant == "images"):
                raise SourceError(
                    f"{where}: no column of {meant} found; it has {_listed(names)}; "
                    f"name it, or rename it to one of {', '.join(known[:6])}, ..."
                )
        assert image is not None
        return cls(image, tuple(captions), classes or {})

    @property
    def names(self) -> list[str]:
        """List all columns that are read, each once."""
        return list(dict.fromkeys((self.image, *self.captions)))

    def record(
        self, row: Mapping[str, Any], key: str, origin: str, folder: Path, remote: Remote | None = None
    ) -> Record:
        """Make the record of a row; paths start at ``folder``, and ``remote`` opens addresses."""
        captions = [found for name in self.captions for found in caption_values(self._named(name, row.get(name)))]
        try:
            return Record(key, origin, stored_image(row.get(self.image), folder, remote), captions)
        except BadRow as bad:
            return Record(key, origin, problem=bad)

    def _named(self, column: str, value: Any) -> Any:
        """Replace the number of a class by its name, in which an underscore stands for a space."""
        names = self.classes.get(column, ())
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
            return names[value].replace("_", " ")
        return value


def stored_image(value: Any, folder: Path, remote: Remote | None = None) -> bytes | Stored | None:
    """Return the image that a cell holds or names, unread; None where the cell is empty.

    Raises:
        BadRow: The cell holds neither a path nor bytes, or the address of an image that was not downloaded.
    """
    inside = isinstance(value, Mapping) and bool({"bytes", "path"} & set(value))
    if inside:
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if value is None or value == "":
        return None
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if not isinstance(value, str):
        raise BadRow("no_image", f"expected a path or bytes, got {type(value).__name__}")
    if "://" in value and inside and remote is not None:  # an address that datasets made up, not one in the data
        return remote(value)
    if "://" in value:
        raise BadRow("missing", f"{value} is an address; download the images first, for example with img2dataset")
    return StoredFile(folder / value)


def _numbered(stem: str, names: Sequence[str]) -> list[str]:
    """Find the columns ``stem``, ``stems`` or ``stem_1``, ``stem_2``, ..., ordered by number."""
    matches = {name: re.fullmatch(rf"{stem}s?(?:[_ ]?(\d+))?", name, re.IGNORECASE) for name in names}
    found = {name: int(match[1] or -1) for name, match in matches.items() if match}
    return sorted(found, key=lambda name: found[name])


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(map(repr, names)) or 'none':.100}"
