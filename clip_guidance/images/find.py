"""Find image files: folders and globs become the paths in them, and nothing is passed over unnoticed."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_SUPPORTED = "png jpg jpeg jpe jfif webp gif bmp tif tiff avif jp2 ppm pgm ico"
_UNSUPPORTED = "heic heif svg"  # found in folders too, so that loading them fails by name
EXTENSIONS = frozenset(f".{extension}" for extension in f"{_SUPPORTED} {_UNSUPPORTED}".split())


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Expand folders and globs to the images in them; keep every other path as it is.

    Args:
        paths: Files, folders (searched recursively, hidden entries left out) and globs (``**`` is recursive).

    Returns:
        Paths in the order given, those of one folder or glob sorted. What matches nothing is kept, so that loading it
        fails by name.
    """
    found: list[Path] = []
    for given in map(Path, paths):
        if os.path.isdir(given):  # not Path.is_dir, which raises where a folder above may not be entered
            matches = list(walk_images(given))
        elif not os.path.exists(given) and glob.has_magic(str(given)):
            matches = sorted(Path(path) for path in glob.glob(str(given), recursive=True) if not os.path.isdir(path))
        else:
            matches = []
        found += matches or [given]
    return found


def walk_images(folder: Path) -> Iterator[Path]:
    """Walk a folder for its visible images in sorted order, one folder's names at a time.

    Broken links, pipes and folders that may not be listed are among the paths, so that loading them fails by name.
    Links to folders are not followed.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield folder
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from walk_images(path)
        elif path.suffix.lower() in EXTENSIONS:
            yield path
