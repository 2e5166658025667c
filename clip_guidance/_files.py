"""The one way to write a file (whole and on the disk, or not at all), and the checks on files that several rooms share.

A file that is being written lies beside its destination as ``NAME.part``; :func:`write_atomically` renames it when it
is complete. After a kill a ``.part`` file may be left behind: nothing reads it, and the next write of that name
replaces it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike[str], suffix: str = ".part") -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` when the block ends without an error.

    The temporary file is flushed to the disk before it is renamed, and its folder afterwards, so that whoever opens
    ``path``, also after a kill or a power cut, finds the former file or the complete new one. Where the block fails,
    the temporary file is deleted.

    Args:
        path: Destination. Its folder must exist; a file in its place is replaced.
        suffix: Ends the name of the temporary file. With the default only one writer of ``path`` may run at a time;
            give each a suffix of its own, such as its process id, where several may.

    Yields:
        Path of the temporary file, in the same folder. The block must create and close it.

    Raises:
        OSError: The file cannot be written, flushed or renamed; ``path`` is as it was before, and the error names it.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from clip_guidance._files import write_atomically
        >>> folder = Path(tempfile.mkdtemp())
        >>> with write_atomically(folder / "scores.csv") as partial:
        ...     _ = partial.write_text("image,score")
        >>> [file.name for file in folder.iterdir()]
        ['scores.csv']
    """
    path = Path(path)
    partial = path.with_name(path.name + suffix)
    try:
        yield partial
        with partial.open("rb+") as file:
            fsync_file(file)
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the first error counts, also where the folder itself is gone
            partial.unlink()
        if isinstance(error, OSError) and error.filename is None:  # a full disk does not say of which file
            error.filename = os.fspath(path)
        raise
    fsync_folder(path.parent)


def fsync_file(file: IO[Any]) -> None:
    """Flush an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Flush the names of new and renamed files in a folder to the disk, where the system can."""
    if os.name == "posix":  # Windows has no such call
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def stat_regular(path: str | os.PathLike[str]) -> os.stat_result:
    """Stat a file, and reject whatever is not a regular file.

    Whoever opens a file calls this first: reading a pipe or a device may never end.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: The path is a folder.
        PermissionError: The path, or the folder that it names, may not be read.
        OSError: The path is a pipe, a socket or a device, or cannot be looked up.
        ValueError: The path contains a null byte.
    """
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        with os.scandir(path):  # a folder that may not be listed fails here, which is the better reason
            raise IsADirectoryError(errno.EISDIR, "a folder, not a file", os.fspath(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return found


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not UTF-8, not JSON, nested too deeply, or holds something other than an object. The message
            begins with a verb, to stand after the name of the file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from clip_guidance._files import read_json
        >>> path = Path(tempfile.mkdtemp(), "config.json")
        >>> _ = path.write_text('{"image_size": 64}')
        >>> read_json(path)
        {'image_size': 64}
    """
    stat_regular(path)
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except RecursionError:
        raise ValueError("is JSON that is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 ({error})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON: {error}") from None
    except ValueError as error:  # a number with more digits than Python converts
        raise ValueError(f"is not valid JSON: {error!s:.100}") from None
    if not isinstance(document, dict):
        raise ValueError(f"holds a {type(document).__name__}, expected a JSON object")
    return document


def is_valid_text(text: str) -> bool:
    r"""Return whether a text can be written as UTF-8.

    File names, and texts read with ``errors="surrogateescape"``, may carry bytes that are not UTF-8 as lone surrogates
    (PEP 383).

    Example:
        >>> from clip_guidance._files import is_valid_text
        >>> is_valid_text("café"), is_valid_text("caf\udce9")
        (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shorten(text: str, most: int, end: bool = False) -> str:
    """Cut a text to ``most`` characters, with an ellipsis where something is left out.

    Args:
        text: A name or a message that somebody else wrote, of any length.
        most: Number of characters that are kept, the ellipsis included.
        end: Keep the end, which is what tells paths apart; by default the beginning.

    Example:
        >>> from clip_guidance._files import shorten
        >>> shorten("file is not a database", 8), shorten("/photos/2024/cat.png", 8, end=True)
        ('file is…', '…cat.png')
    """
    if len(text) <= most:
        return text
    return "…" + text[len(text) - most + 1 :] if end else text[: most - 1] + "…"
