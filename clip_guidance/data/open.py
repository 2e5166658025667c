"""Open a source of image-caption pairs: tars, tables, a folder of images, or a data set of the Hub."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from clip_guidance.data.pairs import Pairs
from clip_guidance.data.records import Source, SourceError
from clip_guidance.data.sources import table, tar
from clip_guidance.data.sources.folder import FolderSource, Listing, list_files
from clip_guidance.data.sources.hub import HubSource
from clip_guidance.data.sources.joined import JoinedSource
from clip_guidance.data.sources.table import AmbiguousFolderError, TableSource
from clip_guidance.data.sources.tar import TarSource
from clip_guidance.images.load import EXTENSIONS

SUPPORTED = (
    "a folder of images with captions.csv, metadata.jsonl, a .txt beside each, or folders named by what they show; "
    ".csv, .tsv, .jsonl, .json, .parquet; .tar, also {0000..0012}.tar; or the owner/name of a Hub data set"
)
CAPTION_TABLES = re.compile(r"(metadata|captions)\.(csv|tsv|jsonl|parquet)", re.IGNORECASE)
# Files of these names are tables of captions if they are tables: captions.txt may also be the text of captions.jpg.
MAYBE_TABLES = re.compile(
    r"(metadata|captions?)\.txt|(metadata|annotations|(.*_)?captions?(_.*)?)\.json", re.IGNORECASE
)
TABLES_ALONE = (".csv", ".tsv", ".jsonl", ".parquet")  # in a folder without images; a .json may hold anything
HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(:[\w.-]+)?")


def open_pairs(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    image_column: str | None = None,
    caption_columns: Sequence[str] = (),
    split: str = "train",
    streaming: bool = True,
    **options: Any,
) -> Pairs:
    """Open whatever holds images and their captions.

    Args:
        path: A folder, a table, a tar, several of them as a glob or with braces, or ``owner/name`` on the Hub; or a
            list of these, which are read as one.
        image_column: Column of tables and data sets, or suffix of files in folders and tars, such as ``input.jpg``; by
            default the first with a customary name.
        caption_columns: Columns of tables and data sets; of folders and tars, suffixes of files (``outputs.txt``), or
            keys in the .json of an image. By default those with a customary name.
        split: Split of a data set.
        streaming: Whether a Hub data set is read while it is downloaded.
        **options: Options of :class:`~clip_guidance.data.pairs.Pairs`: ``policy``, ``shard``, ``seed``,
            ``shuffle_buffer``, ``workers``, ``ahead``, ``transform``, ``exclude``, ``quarantine``.

    Returns:
        The pairs, of which no image is read yet.

    Raises:
        SourceError: There is nothing to read; the message names what was found and what is supported.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from clip_guidance.data import open_pairs
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 8), "red").save(folder / "1.png")
        >>> _ = (folder / "1.txt").write_text("a red apple")
        >>> [(pair.key, pair.captions, pair.image.size) for pair in open_pairs(folder)]
        [('1.png', ('a red apple',), (8, 8))]
    """
    columns = {"image_column": image_column, "caption_columns": caption_columns}
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    sources = [find_source(os.fspath(one), columns, {"split": split, "streaming": streaming}) for one in paths]
    return Pairs(sources[0] if len(sources) == 1 else JoinedSource(sources), **options)


def find_source(name: str, columns: dict[str, Any], hub: dict[str, Any]) -> Source:
    """Find the source that a path names, as :func:`open_pairs` says."""
    path = Path(name)
    if path.is_dir():
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return HubSource(name, **hub, **columns)
        return _source_in(list_files(path), columns)
    files = [path] if path.exists() else _expand(name)
    if not files:
        if HUB_NAME.fullmatch(name) and path.suffix.lower() not in (*table.SUFFIXES, *tar.SUFFIXES):
            return HubSource(name, **hub, **columns)
        raise SourceError(f"{name}: there is no such file or folder; supported are {SUPPORTED}")
    kinds = Counter(_kind(file) for file in files)
    if set(kinds) == {"tar"}:
        return TarSource(files, name, **columns)
    if set(kinds) == {"table"}:
        return TableSource(files, name, **columns)
    if len(kinds) > 1:
        raise SourceError(f"{name}: expected one kind of file, found {_counted(files)}")
    raise SourceError(f"{name}: a {path.suffix or 'file without suffix'} cannot be read; supported are {SUPPORTED}")


def _source_in(listing: Listing, columns: dict[str, Any]) -> Source:
    """Find the source in a folder: archives, else tables of captions, else images alone."""
    root = listing.root
    if tars := listing.with_suffix(*tar.SUFFIXES):
        return TarSource([root / file for file in tars], str(root), **columns)
    images = listing.with_suffix(*EXTENSIONS)
    parquet = listing.with_suffix(".parquet")
    tables = caption_tables(listing, columns) or (
        parquet if not images or _holds_images(root, parquet, columns) else []
    )
    tables = tables or ([] if images else listing.with_suffix(*TABLES_ALONE))
    if tables:
        return TableSource([root / file for file in tables], str(root), **columns, root=root)
    if images or listing.denied:
        return FolderSource(listing, **columns)
    found = _counted(map(PurePath, listing.files)) or "nothing"
    raise SourceError(f"{root}: found {found}; supported are {SUPPORTED}")


def caption_tables(listing: Listing, columns: dict[str, Any]) -> list[str]:
    """List the tables in a folder that caption its images; empty where there is none."""
    if tables := [file for file in listing.files if CAPTION_TABLES.fullmatch(PurePath(file).name)]:
        return tables
    maybe = [file for file in listing.files if MAYBE_TABLES.fullmatch(PurePath(file).name)]
    return [file for file in maybe if _is_table(listing.root, file, columns)]


def _is_table(root: Path, file: str, columns: dict[str, Any]) -> bool:
    try:
        source = TableSource([root / file], file, **columns, root=root)
    except AmbiguousFolderError:
        raise
    except SourceError:
        return False
    return source.columns(root / file) is not None


def _holds_images(root: Path, parquet: list[str], columns: dict[str, Any]) -> bool:
    """Return whether tables beside images hold images, which those of img2dataset do not."""
    try:
        return bool(parquet) and bool(TableSource([root / parquet[0]], str(root), **columns))
    except SourceError:
        return False


def _expand(name: str) -> list[Path]:
    """Expand a glob or braces to files.

    Raises:
        SourceError: A file that braces name does not exist.
    """
    files: list[Path] = []
    for pattern in expand_braces(name):
        found = sorted(map(Path, glob.glob(pattern, recursive=True))) if glob.has_magic(pattern) else [Path(pattern)]
        if pattern != name and (absent := [path for path in found if not path.exists()]):
            raise SourceError(f"{name}: there is no {absent[0]}")
        files += [path for path in found if path.is_file()]
    return files


def expand_braces(text: str) -> list[str]:
    """Expand braces as a shell does, several of them to all combinations.

    Example:
        >>> from clip_guidance.data.open import expand_braces
        >>> expand_braces("{train,val}-{08..10}.tar")[:4]
        ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar']
    """
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        return [text]
    choices = match[1].split(",")
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", match[1]):
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        choices = [f"{number:0{width}}" for number in range(int(numbers[1]), int(numbers[2]) + 1)]
    tails = expand_braces(text[match.end() :])
    return [text[: match.start()] + choice + tail for choice, tail in itertools.product(choices, tails)]


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in tar.SUFFIXES or path.name.lower().endswith((".tar.gz", ".tar.bz2", ".tar.xz")):
        return "tar"
    return "table" if suffix in table.SUFFIXES else "other"


def _counted(files: Any) -> str:
    counts = Counter(file.suffix.lower() or "without suffix" for file in files)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(8))
