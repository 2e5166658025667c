"""Keep embeddings of images on the disk, so that each image is encoded once for all who use the cache.

An image is identified by the hash of its bytes (BLAKE2b-128), a CLIP by its fingerprint and precision: files that were
moved or renamed are found again, and changed files and other models are never mixed up. Each CLIP has an SQLite file,
in which a row is a hash, a float32 vector and a checksum of both. Processes may share it, and a kill loses only what
was not written yet. A vector that was damaged counts as not there: it is computed anew, and replaced.

    encode_files(CachedCLIP(clip, cache), paths)      batch by batch; names what cannot be read
"""

from __future__ import annotations

import os
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from clip_guidance._files import shorten
from clip_guidance._sqlite import check_schema, connect, schema_of
from clip_guidance.clip.finite import check_finite, finite_rows
from clip_guidance.images.files import NO_MEMORY, content_hash, read_bytes
from clip_guidance.images.load import ImageError, ImageSource, Skipped, as_list, image_name, load_image

if TYPE_CHECKING:
    from clip_guidance.clip.dual_encoder import DualEncoder

_TABLE = "CREATE TABLE IF NOT EXISTS embeds (hash TEXT PRIMARY KEY, embed BLOB NOT NULL)"
_CHECKSUM = "ALTER TABLE embeds ADD COLUMN checksum INTEGER"  # older caches have none
_KNOWN = schema_of([_TABLE]) | schema_of([_TABLE, _CHECKSUM])
_GET = "SELECT embed, checksum FROM embeds WHERE hash = ?"
_PUT = """INSERT INTO embeds (hash, embed, checksum) VALUES (?, ?, ?) ON CONFLICT (hash) DO UPDATE
    SET embed = excluded.embed, checksum = excluded.checksum WHERE checksum IS NOT checksum_of(hash, embed)"""


class EmbedCacheError(ValueError):
    """A cache cannot be used; the message names the file and says what to do."""


class EmbedCache:
    """Store embeddings in a folder; several threads and processes may use it at once.

    Args:
        folder: Created where it does not exist.

    Raises:
        EmbedCacheError: There is something else in its place, or it cannot be created.

    Example:
        >>> import tempfile, torch
        >>> from clip_guidance.clip.embed_cache import EmbedCache
        >>> with EmbedCache(tempfile.mkdtemp()) as cache:
        ...     cache.put("some-clip", {"0a1b": torch.tensor([0.6, 0.8])})
        ...     print(cache.get("some-clip", "0a1b"), cache.get("some-clip", "ffff"))
        tensor([0.6000, 0.8000]) None
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            name = shorten(str(self.folder), 120, end=True)
            raise EmbedCacheError(f"{name}: cannot be a folder of embeddings ({reason})") from error
        self._files: dict[str, sqlite3.Connection] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> EmbedCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()

    def get(self, key: str, content: str, dim: int | None = None) -> Tensor | None:
        """Look up the vector (d,) of an image; return None where there is none, or a damaged one.

        Args:
            key: Key of the CLIP, see :func:`cache_key`.
            content: Hash of the image's bytes, hexadecimal.
            dim: Size d of the vector; by default any.

        Raises:
            EmbedCacheError: The file is damaged.
        """
        row = self._run(key, lambda file: file.execute(_GET, (content,)).fetchone())
        if row is None or not isinstance(row[0], bytes) or len(row[0]) % 4:
            return None
        embed = torch.from_numpy(np.frombuffer(row[0], np.float32).copy())
        # A vector of an older cache has no checksum; it should at least have the length of those that CLIP computes.
        whole = row[1] == _checksum(content, row[0]) if row[1] is not None else abs(embed.norm() - 1) < 0.01
        return embed if whole and dim in (None, len(embed)) else None

    def put(self, key: str, embeds: Mapping[str, Tensor]) -> None:
        """Store vectors (d,) by the hashes of their images; what is stored already stays, unless it is damaged.

        Vectors that are not finite are not stored: another device may compute them without overflow.

        Args:
            key: Key of the CLIP, see :func:`cache_key`.
            embeds: Vectors by the hashes of the images' bytes.

        Raises:
            EmbedCacheError: The file is damaged, or the disk is full.
        """
        found = ((content, embed.detach().float().cpu()) for content, embed in embeds.items())
        data = [(content, embed.numpy().tobytes()) for content, embed in found if embed.isfinite().all()]
        rows = [(content, embed, _checksum(content, embed)) for content, embed in data]
        self._run(key, lambda file: file.executemany(_PUT, rows))

    def _run(self, key: str, work: Any) -> Any:
        path = self.folder / f"{key}.sqlite"
        with self._lock:
            try:
                if key not in self._files:
                    self._files[key] = _open(path)
                with self._files[key] as file:  # commits
                    return work(file)
            except sqlite3.Error as error:
                name, reason = shorten(str(path), 120, end=True), shorten(str(error), 100)
                raise EmbedCacheError(f"{name}: {reason}; if it is damaged, delete it: it is computed anew") from error


def _open(path: Path) -> sqlite3.Connection:
    file = connect(path, timeout=60, check_same_thread=False)
    try:
        file.create_function("checksum_of", 2, _checksum, deterministic=True)
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = NORMAL")
        check_schema(file, _KNOWN)
        with file:
            file.execute("BEGIN IMMEDIATE")  # another process may be doing the same
            file.execute(_TABLE)
            if not file.execute("SELECT 1 FROM pragma_table_info('embeds') WHERE name = 'checksum'").fetchone():
                file.execute(_CHECKSUM)
    except BaseException:
        file.close()
        raise
    return file


def _checksum(content: Any, embed: Any) -> int:
    typed = isinstance(content, str) and isinstance(embed, bytes)
    return zlib.crc32(embed, zlib.crc32(content.encode())) if typed else -1


class CachedCLIP:
    """Wrap a CLIP so that ``encode_image`` looks into a cache first.

    Everything else is the CLIP's own: ``clip_score``, ``ZeroShotClassifier``, ``image_similarity``,
    ``duplicate_images`` and ``ImageIndex.add`` take it in place of the CLIP. Only images given as paths or bytes are
    cached: an image in memory has no bytes of a file that identify it.

    Args:
        clip: The model; its weights must not change afterwards.
        cache: Where vectors are stored.

    Attributes:
        key: What the vectors are stored under, see :func:`cache_key`.
    """

    def __init__(self, clip: DualEncoder, cache: EmbedCache) -> None:
        self.clip, self.cache, self.key = clip, cache, cache_key(clip)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.clip, name)

    def encode_image(self, images: Any, batch_size: int = 64) -> Tensor:
        """Embed images as ``CLIP.encode_image`` does, encoding only what is new.

        Raises:
            ImageError: An image cannot be read; the message names it.
            ValueError: An embedding is not finite.
        """
        named = [(image, image_name(image, place)) for place, image in enumerate(as_list(images))]
        parts = ([prepare(self, *pair) for pair in named[i : i + batch_size]] for i in range(0, len(named), batch_size))
        return check_finite(self.clip, torch.cat([encode(self, part) for part in parts]), "image")


def cache_key(clip: DualEncoder) -> str:
    """Return what a CLIP's vectors are stored under: its fingerprint and precision."""
    return f"{clip.fingerprint()}-{str(clip.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Prepared:
    """An image before it is encoded.

    Attributes:
        content: Hash of its bytes, where there is a cache and the image came as a file.
        embed: Its vector (d,), where the cache holds it.
        pixels: What the image tower reads, (3, S, S), where the cache does not hold it.
    """

    content: str | None = None
    embed: Tensor | None = None
    pixels: Tensor | None = None


@dataclass(frozen=True)
class EncodedBatch:
    """Some of the images of :func:`encode_files`.

    Attributes:
        names: The paths of the images that could be read.
        embeds: Their unit vectors (n, d), float32 on the model's device.
        skipped: The images that could not be read, or whose vectors are not finite.
    """

    names: list[str]
    embeds: Tensor
    skipped: list[Skipped] = field(default_factory=list)


def prepare(clip: DualEncoder | CachedCLIP, source: ImageSource, name: str) -> Prepared:
    """Look an image up in the cache, if there is one; decode it where it is not found.

    Raises:
        ImageError: The image cannot be read.
    """
    content = None
    if isinstance(clip, CachedCLIP) and (data := _bytes_of(source)) is not None:
        content, source = content_hash(data), data
        if (embed := clip.cache.get(clip.key, content, clip.projection_dim)) is not None:
            return Prepared(content, embed)
    image = load_image(source, name)
    try:
        return Prepared(content, pixels=clip.image_processor(image))
    except MemoryError:
        raise ImageError(name, NO_MEMORY) from None


@torch.no_grad()
def encode(clip: DualEncoder | CachedCLIP, prepared: Sequence[Prepared]) -> Tensor:
    """Encode prepared images, and store the new vectors in the cache.

    Returns:
        Unit vectors (n, d), float32 on the model's device.
    """
    embeds = torch.empty(len(prepared), clip.projection_dim, device=clip.device)
    for place, known in enumerate(prepared):
        if known.embed is not None:
            embeds[place] = known.embed
    new = {place: each.pixels for place, each in enumerate(prepared) if each.pixels is not None}
    if new:
        embeds[list(new)] = clip.image_embeds(torch.stack(list(new.values())).to(clip.device, clip.dtype)).float()
    if isinstance(clip, CachedCLIP):
        contents = {place: content for place in new if (content := prepared[place].content)}
        clip.cache.put(clip.key, {content: embeds[place] for place, content in contents.items()})
    return embeds


def encode_files(
    clip: DualEncoder | CachedCLIP, paths: Sequence[str | os.PathLike[str]], batch_size: int = 64
) -> Iterator[EncodedBatch]:
    """Encode image files; skip and report those that cannot be read.

    Args:
        clip: The model; a :class:`CachedCLIP` encodes only what is new.
        paths: Paths of the images.
        batch_size: Number of images that are read and encoded at once.

    Yields:
        Batches in order, each of ``batch_size`` paths except the last.
    """
    for start in range(0, len(paths), batch_size):
        prepared: dict[int, Prepared] = {}
        skipped: list[Skipped] = []
        names = [os.fspath(path) for path in paths[start : start + batch_size]]
        for place, name in enumerate(names):
            try:
                prepared[place] = prepare(clip, name, name)
            except ImageError as error:
                skipped.append(Skipped(name, error.reason))
        read = [names[place] for place in prepared]
        yield EncodedBatch(*finite_rows(clip, read, encode(clip, list(prepared.values())), skipped))


def _bytes_of(source: ImageSource) -> bytes | None:
    """Return the bytes of an image's file; None for an image in memory or a file that fails."""
    if isinstance(source, bytes) or not isinstance(source, (str, os.PathLike)):
        return source if isinstance(source, bytes) else None
    try:
        return read_bytes(os.fspath(source))
    except ImageError:  # load_image raises it anew, with the name that the caller chose
        return None
