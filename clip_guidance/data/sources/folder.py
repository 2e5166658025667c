"""Read a folder of images, each captioned by the .txt beside it or by the name of its folder as a class label.

Only names are in memory, some 100 bytes per image; very large sets are better stored as tars. Whether an image is
captioned by a text or by the folder's name is decided folder by folder: where one image has a .txt, an image without
one is a bad row.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from clip_guidance.data.records import BadRow, Part, Record, StoredFile, read_lines
from clip_guidance.images.load import EXTENSIONS

PART_IMAGES = 256  # small, so that shuffled parts mix the classes


@dataclass(frozen=True)
class Listing:
    """The files under a folder.

    Attributes:
        root: The folder.
        files: Relative paths, folder by folder, sorted; hidden files are left out.
        denied: (Relative path, reason) of the folders that may not be listed.
    """

    root: Path
    files: list[str]
    denied: list[tuple[str, str]]

    def with_suffix(self, *suffixes: str) -> list[str]:
        """List the files with one of these suffixes, given in lower case with their dot."""
        return [file for file in self.files if PurePath(file).suffix.lower() in suffixes]


def list_files(root: Path) -> Listing:
    """List the files of all kinds under a folder, and the folders that may not be listed.

    Links are followed, and a folder reached twice (a loop of links) is listed once. The order of training depends on
    this order, a folder's files before its subfolders; :func:`clip_guidance.images.find.walk_images` has another.
    """
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
    """Read the images of a folder and their captions, as a :class:`.Source`.

    Args:
        listing: The files of the folder.
    """

    kind = "image folder"

    def __init__(self, listing: Listing):
        self.name, self.root, self.denied = str(listing.root), listing.root, listing.denied
        self.images = listing.with_suffix(*EXTENSIONS)
        texts = set(listing.with_suffix(".txt"))
        self.texts = {image: text for image in self.images if (text := _beside(image)) in texts}
        self.captioned = {os.path.dirname(image) for image in self.texts}
        starts = range(0, len(self.images), PART_IMAGES)
        self.parts = [Part(self.images[start], min(PART_IMAGES, len(self.images) - start)) for start in starts]
        if self.denied:
            self.parts.append(Part("denied", len(self.denied)))

    def read(self, index: int) -> Iterator[Record]:
        """Yield the records of a part; the last part may be the folders that may not be listed."""
        if index * PART_IMAGES >= len(self.images):
            for name, reason in self.denied:
                yield Record(name, self.name, problem=BadRow("unreadable", f"folder {name}: {reason}"))
            return
        for image in self.images[index * PART_IMAGES : (index + 1) * PART_IMAGES]:
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
