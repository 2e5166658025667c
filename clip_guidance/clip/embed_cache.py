"""Embeddings of images kept on the disk, so that an image is encoded once, whatever asks for it.

An image is known by the hash of its bytes (BLAKE2b-128), a CLIP by its fingerprint and precision: moved and renamed
files are found again, changed ones and other models are not mixed up. One SQLite file a CLIP, in which a row is a hash
and a float32 vector: processes may share it, and a kill loses at most what was not yet written.

    encode_files(CachedCLIP(clip, cache), paths)      batch by batch, with what cannot be read named
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from clip_guidance.images.files import content_hash, read_bytes
from clip_guidance.images.load import ImageError, ImageSource, Skipped, as_list, image_name, load_image

if TYPE_CHECKING:
    from clip_guidance.clip import CLIP


class EmbedCacheError(ValueError):
    """A cache that cannot be used. The message names the file and says what to do."""


class EmbedCache:
    """A folder of embeddings; may be used by several threads and processes.

    Args:
        folder: made where there is none.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, sqlite3.Connection] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> EmbedCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes its files."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()

    def get(self, key: str, content: str) -> Tensor | None:
        """The vector (d,) of an image.

        Args:
            key: of the CLIP, see :func:`cache_key`.
            content: hash of the image's bytes, hexadecimal.

        Raises:
            EmbedCacheError: the file is damaged.
        """
        sql = "SELECT embed FROM embeds WHERE hash = ?"
        row = self._run(key, lambda file: file.execute(sql, (content,)).fetchone())
        return torch.from_numpy(np.frombuffer(row[0], np.float32).copy()) if row else None

    def put(self, key: str, embeds: Mapping[str, Tensor]) -> None:
        """Stores vectors (d,) by the hashes of their images; one that is there already stays.

        What is not finite is not stored: another device or precision may do better.

        Raises:
            EmbedCacheError: the file is damaged, or the disk is full.
        """
        found = ((content, embed.detach().float().cpu()) for content, embed in embeds.items())
        rows = [(content, embed.numpy().tobytes()) for content, embed in found if embed.isfinite().all()]
        self._run(key, lambda file: file.executemany("INSERT OR IGNORE INTO embeds VALUES (?, ?)", rows))

    def _run(self, key: str, work: Any) -> Any:
        path = self.folder / f"{key}.sqlite"
        with self._lock:
            try:
                if key not in self._files:
                    self._files[key] = file = sqlite3.connect(path, timeout=60, check_same_thread=False)
                    file.execute("PRAGMA journal_mode = WAL")
                    file.execute("PRAGMA synchronous = NORMAL")
                    file.execute("CREATE TABLE IF NOT EXISTS embeds (hash TEXT PRIMARY KEY, embed BLOB NOT NULL)")
                with self._files[key] as file:  # commits
                    return work(file)
            except sqlite3.Error as error:
                hint = "if it is damaged, delete it: it is computed anew"
                raise EmbedCacheError(f"{path}: {error}; {hint}") from error


class CachedCLIP:
    """A CLIP whose ``encode_image`` looks into a cache first; everything else is the CLIP's own.

    It stands in for the CLIP in ``clip_score``, ``ZeroShotClassifier``, ``image_similarity``, ``duplicate_images`` and
    ``ImageIndex.add``.
    Only images given as paths or bytes are cached: those in memory have no file to be known by.

    Args:
        clip: the model; its weights must not change afterwards.
        cache: where vectors are kept.
    """

    def __init__(self, clip: CLIP, cache: EmbedCache) -> None:
        self.clip, self.cache, self.key = clip, cache, cache_key(clip)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.clip, name)

    def encode_image(self, images: Any, batch_size: int = 64) -> Tensor:
        """As ``CLIP.encode_image``: unit vectors float32 (n, d), on the model's device.

        Raises:
            ImageError: an image cannot be read; names it.
        """
        listed = as_list(images)
        names = [image_name(image, place) for place, image in enumerate(listed)]
        named = list(zip(listed, names, strict=True))
        parts = (named[start : start + batch_size] for start in range(0, len(named), batch_size))
        return torch.cat([encode(self, [prepare(self, *pair) for pair in part]) for part in parts])


def cache_key(clip: CLIP) -> str:
    """What a CLIP's vectors are kept under: its fingerprint and precision."""
    return f"{clip.fingerprint()}-{str(clip.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Prepared:
    """An image before it is encoded.

    Attributes:
        content: hash of its bytes, where a cache knows it by that.
        embed: its vector (d,), where the cache has it.
        pixels: else what the image tower reads, (3, S, S).
    """

    content: str | None = None
    embed: Tensor | None = None
    pixels: Tensor | None = None


@dataclass(frozen=True)
class EncodedBatch:
    """Some of the images of :func:`encode_files`.

    Attributes:
        names: the paths of those that could be read.
        embeds: their unit vectors (n, d), float32 on the model's device.
        skipped: what could not be read.
    """

    names: list[str]
    embeds: Tensor
    skipped: list[Skipped] = field(default_factory=list)


def prepare(clip: CLIP | CachedCLIP, source: ImageSource, name: str) -> Prepared:
    """Looks an image up in the cache, if there is one, or decodes it.

    Raises:
        ImageError: it cannot be read.
    """
    content = None
    if isinstance(clip, CachedCLIP) and (data := _bytes_of(source)) is not None:
        content, source = content_hash(data), data
        if (embed := clip.cache.get(clip.key, content)) is not None:
            return Prepared(content, embed)
    return Prepared(content, pixels=clip.image_processor(load_image(source, name)))


@torch.no_grad()
def encode(clip: CLIP | CachedCLIP, prepared: Sequence[Prepared]) -> Tensor:
    """Unit vectors (n, d) of images, float32 on the model's device; the new ones among them go into the cache."""
    embeds = torch.empty(len(prepared), clip.config.projection_dim, device=clip.device)
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
    clip: CLIP | CachedCLIP, paths: Sequence[str | os.PathLike[str]], batch_size: int = 64
) -> Iterator[EncodedBatch]:
    """Encodes image files; one that cannot be read costs no other.

    Args:
        clip: the model; a :class:`CachedCLIP` encodes only what is new.
        paths: of the images.
        batch_size: images read and encoded at once.

    Yields:
        Batches in order; each of ``batch_size`` paths, but for the last.
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
        yield EncodedBatch([names[place] for place in prepared], encode(clip, list(prepared.values())), skipped)


def _bytes_of(source: ImageSource) -> bytes | None:
    """The bytes of an image's file; None for one in memory, and where ``load_image`` tells better what is wrong."""
    if isinstance(source, bytes) or not isinstance(source, (str, os.PathLike)):
        return source if isinstance(source, bytes) else None
    try:
        return read_bytes(os.fspath(source))
    except ImageError:
        return None
