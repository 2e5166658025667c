"""Read a folder of images, each captioned by the text of its name or by the name of its folder as a class label.

A text (.txt, .caption) lies beside its image, or in a folder ``captions`` beside the folder ``images``. Whether an
image without one is captioned by its folder's name is decided folder by folder: where one image has a text, an image
without one is a bad row. Only names are in memory, some 200 bytes per image; very large sets are better stored as tars.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from clip_guidance.data.records import BadRow, Part, Record, SourceError, StoredFile
from clip_guidance.data.sources.members import TEXTS, Picked
from clip_guidance.images.find import EXTENSIONS

PART_IMAGES = 256  # small, so that shuffled parts mix the classes
LAYOUT = ("images", "image", "imgs", "img", "photos", "pictures", "captions", "caption", "texts", "text", "txt")
TABLES = (".json", ".jsonl", ".csv", ".tsv", ".xml", ".xlsx", ".token", ".parquet")


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
        image_column: Suffix of the images that are read, such as ``png`` or ``input.jpg``; by default all are.
        caption_columns: Suffixes of captions, or keys in a .json beside the image; by default .txt or .caption.
        class_names: Whether images without a text are captioned by the name of their folder. Otherwise they are records
            without captions, and no bad ones.

    Raises:
        SourceError: Text files lie unread while the images would be captioned by the names of their folders.
    """

    kind = "image folder"

    def __init__(
        self,
        listing: Listing,
        image_column: str | None = None,
        caption_columns: Sequence[str] = (),
        class_names: bool = True,
    ):
        self.name, self.root, self.denied = str(listing.root), listing.root, listing.denied
        self.class_names = class_names
        self.picked = Picked(image_column, tuple(caption_columns))
        self.images = listing.with_suffix(*EXTENSIONS)
        if image_column is not None:
            self.images = [image for image in self.images if self.picked.image_of({_suffix(image): image})]
        self.texts = Texts(listing, self.images, bool(image_column or caption_columns))
        self.captioned = {os.path.dirname(image) for image in self.images if self.texts.of(image)}
        if class_names:
            self._check_unread(listing)
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
            yield self.record(image)

    def record(self, image: str) -> Record:
        """Return the record of an image, given by its path relative to the folder."""
        stored, folder = StoredFile(self.root / image), os.path.dirname(image)
        if texts := self.texts.of(image):
            members = {suffix: StoredFile(self.root / text) for suffix, text in texts.items()}
            return Record(image, self.name, stored, self.picked.captions_of(members))
        if not self.class_names:
            return Record(image, self.name, stored)
        if folder in self.captioned or not folder:
            beside = os.path.basename(os.path.splitext(image)[0]) + ".txt"
            return Record(image, self.name, stored, problem=BadRow("no_caption", f"there is no {beside} beside it"))
        return Record(image, self.name, stored, [_class_name(folder)])

    def _check_unread(self, listing: Listing) -> None:
        """Refuse names of folders as captions where they are all the same, or where texts are called like the images.

        Raises:
            SourceError: Text files lie unread.
        """
        named = [image for image in self.images if os.path.dirname(image) not in {"", *self.captioned}]
        stems = {PurePath(image).stem for image in named}
        called = [text for text in self.texts.unread if PurePath(text).stem in stems]
        other = [] if self.captioned else [*self.texts.unread, *filter(_may_hold_captions, listing.files)]
        classes = {_class_name(os.path.dirname(image)) for image in named}
        if found := called or (other if len(classes) == 1 else []):
            listed = ", ".join(f"{text:.40}" for text in found[:3]) + (", ..." if len(found) > 3 else "")
            raise SourceError(
                f"{self.name:.80}: {len(named)} images would be captioned {min(classes)[:30]!r} by their folder, and "
                f"text files lie unread: {listed}; put a .txt beside each image, list image and caption in a "
                "captions.csv, or move them away"
            )


class Texts:
    """Find the texts of images: of the same name beside an image, or in ``captions/`` beside ``images/``.

    Args:
        listing: The files of a folder.
        images: Those that are images.
        by_name: Whether suffixes were asked for by name; then .json files, and those with the same name up to the first
            dot, belong to an image too.

    Attributes:
        unread: The texts that belong to no image.

    Raises:
        SourceError: An image has texts in two folders.
    """

    def __init__(self, listing: Listing, images: Sequence[str], by_name: bool):
        self.by_name = by_name
        self.beside: defaultdict[str, list[str]] = defaultdict(list)
        self.apart: dict[str, str] = {}
        kinds = TEXTS if by_name else [suffix for suffix in TEXTS if suffix != "json"]
        texts = listing.with_suffix(*(f".{suffix}" for suffix in kinds))
        for text in texts:
            for key in {os.path.splitext(text)[0], _first_dot(text)} if by_name else {os.path.splitext(text)[0]}:
                self.beside[key].append(text)
        alone = [image for image in images if not self._beside(image)]
        read = (
            {text for image in images for text in self._beside(image).values()} if len(alone) < len(images) else set()
        )
        apart: defaultdict[str, list[str]] = defaultdict(list)
        for text in texts:
            if text not in read:
                apart[_without_layout(text)].append(text)
        for image in alone:
            found = apart.get(_without_layout(image), [])
            if len(found) > 1 and len({os.path.dirname(text) for text in found}) > 1:
                raise SourceError(f"{listing.root}: {image} has captions in {found[0]} and in {found[1]}; keep one")
            if found:
                self.apart[image] = found[0]
                read.update(found)
        self.unread = [text for text in texts if text not in read]

    def of(self, image: str) -> dict[str, str]:
        """Return the texts of an image by their suffixes; empty where it has none."""
        if image in self.apart:
            return {PurePath(self.apart[image]).suffix.lower()[1:]: self.apart[image]}
        return self._beside(image)

    def _beside(self, image: str) -> dict[str, str]:
        keys = (os.path.splitext(image)[0], image, *([_first_dot(image)] if self.by_name else []))
        texts = [text for key in keys for text in self.beside.get(key, ())]
        return {_suffix(text) if self.by_name else PurePath(text).suffix.lower()[1:]: text for text in texts}


def _class_name(folder: str) -> str:
    return os.path.basename(folder).replace("_", " ")


def _first_dot(path: str) -> str:
    """Return a path up to the first dot of the file's name."""
    folder, name = os.path.split(path)
    return os.path.join(folder, name.partition(".")[0])


def _suffix(path: str) -> str:
    """Return what is behind the first dot of the file's name, in lower case."""
    return os.path.basename(path).partition(".")[2].lower()


def _without_layout(path: str) -> str:
    """Return a path without its suffix and without the folders ``images`` and ``captions``."""
    parts = PurePath(path).with_suffix("").parts
    return os.path.join(*(part for part in parts[:-1] if part.lower() not in LAYOUT), parts[-1])


def _may_hold_captions(file: str) -> bool:
    path = PurePath(file)
    return path.suffix.lower() in TABLES and not path.name.lower().startswith(("readme", "license"))
