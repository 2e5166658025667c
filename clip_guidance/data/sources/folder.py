"""A folder of images: each captioned by the .txt beside it, or by the name of its folder as a class label.

Only names are held, some 100 bytes an image; sets of very many images are better kept in tars. Which folders hold
captions is decided folder by folder: where one image has its .txt, one without it is bad rather than labelled by the
folder's name.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from clip_guidance.data.records import BadRow, Part, Record, StoredFile, read_lines
from clip_guidance.images.load import EXTENSIONS

PART = 256  # images; small, so that shuffled parts mix the classes


@dataclass(frozen=True)
class Listing:
    """The files under a folder.

    Attributes:
        root: the folder.
        files: relative paths, folder by folder, sorted; hidden ones left out.
        denied: (relative path, reason) of folders that may not be listed.
    """

    root: Path
    files: list[str]
    denied: list[tuple[str, str]]

    def with_suffix(self, *suffixes: str) -> list[str]:
        """The files that end so; suffixes in lower case with their dot."""
        return [file for file in self.files if PurePath(file).suffix.lower() in suffixes]


def list_files(root: Path) -> Listing:
    """Lists a folder; links are followed, and a folder reached twice (a loop of links) is listed once."""
    files: list[str] = []
    denied: list[tuple[str, str]] = []
    seen: set[tuple[int, int]] = set()

    def note(error: OSError) -> None:
        denied.append((os.path.relpath(error.filename, root), error.strerror or type(error).__name__))

    for folder, folders, names in os.walk(root, onerror=note, followlinks=True):
        found = os.stat(folder)
        if (found.st_dev, found.st_ino) in seen:
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = os.path.relpath(folder, root)
        files += [os.path.normpath(os.path.join(here, n)) for n in sorted(names) if not n.startswith(".")]
    return Listing(root, files, denied)


class FolderSource:
    """Images of a folder and their captions; a :class:`~clip_guidance.data.records.Source`."""

    kind = "image folder"

    def __init__(self, listing: Listing):
        self.name, self.root, self.denied = str(listing.root), listing.root, listing.denied
        self.images = listing.with_suffix(*EXTENSIONS)
        texts = set(listing.with_suffix(".txt"))
        self.texts = {image: text for image in self.images if (text := _beside(image)) in texts}
        self.captioned = {os.path.dirname(image) for image in self.texts}
        starts = range(0, len(self.images), PART)
        self.parts = [Part(self.images[start], min(PART, len(self.images) - start)) for start in starts]
        if self.denied:
            self.parts.append(Part("denied", len(self.denied)))

    def read(self, index: int) -> Iterator[Record]:
        """The records of a part; the last part may be the folders that may not be listed."""
        if index * PART >= len(self.images):
            for name, reason in self.denied:
                yield Record(name, self.name, problem=BadRow("unreadable", f"folder {name}: {reason}"))
            return
        for image in self.images[index * PART : (index + 1) * PART]:
            yield self._record(image)

    def _record(self, image: str) -> Record:
        stored, folder = StoredFile(self.root / image), os.path.dirname(image)
        if image in self.texts:
            text = StoredFile(self.root / self.texts[image])
            return Record(image, self.name, stored, functools.partial(read_lines, text))
        if folder in self.captioned or not folder:
            beside = os.path.basename(_beside(image))
            return Record(image, self.name, stored, problem=BadRow("no_caption", f"there is no {beside} beside it"))
        return Record(image, self.name, stored, [os.path.basename(folder).replace("_", " ")])


def _beside(image: str) -> str:
    return os.path.splitext(image)[0] + ".txt"
