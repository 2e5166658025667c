"""Which files are images: folders and globs become the paths in them, and nothing is passed over unnoticed."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_READ = "png jpg jpeg jpe jfif webp gif bmp tif tiff avif jp2 ppm pgm ico"
_REFUSED = "heic heif svg"  # found in a folder too: refused by name rather than overlooked
EXTENSIONS = frozenset(f".{extension}" for extension in f"{_READ} {_REFUSED}".split())


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Expands folders and globs to the images in them; a path that is neither stays as it is.

    Args:
        paths: files, folders (searched recursively, hidden entries left out) and globs (``**`` is recursive).

    Returns:
        Paths in the order given, those of one folder or glob sorted. What matches nothing is kept, so that
        loading it fails by name instead of passing unnoticed.
    """
    found: list[Path] = []
    for given in map(Path, paths):
        if os.path.isdir(given):  # not Path.is_dir, which raises where a folder above may not be entered
            matches = sorted(_inside(given))
        elif not os.path.exists(given) and glob.has_magic(str(given)):
            matches = sorted(Path(path) for path in glob.glob(str(given), recursive=True) if not os.path.isdir(path))
        else:
            matches = []
        found += matches or [given]
    return found


def _inside(folder: Path) -> Iterator[Path]:
    """The visible images under a folder, also broken links and pipes, and folders that may not be looked into."""
    closed: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=lambda error: closed.append(Path(error.filename))):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = (Path(parent, name) for name in names if not name.startswith("."))
        yield from (path for path in visible if path.suffix.lower() in EXTENSIONS)
    yield from closed
