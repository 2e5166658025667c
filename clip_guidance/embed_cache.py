"""Embeddings of pictures kept on the disk, so that a picture is encoded once, whatever asks for it.

A picture is known by the hash of its bytes (BLAKE2b-128), a CLIP by its fingerprint and precision: moved and renamed
files are found again, changed ones and other models are not mixed up. One SQLite file a CLIP, in which a row is a hash
and a float32 vector: processes may share it, and a kill loses at most what was not yet written.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from clip_guidance.images import as_list, image_name, load_image
from clip_guidance.index.adding import content_hash, read_bytes

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
        """The vector (d,) of a picture.

        Args:
            key: of the CLIP, see :func:`cache_key`.
            content: hash of the picture's bytes, hexadecimal.

        Raises:
            EmbedCacheError: the file is damaged.
        """
        sql = "SELECT embed FROM embeds WHERE hash = ?"
        row = self._run(key, lambda file: file.execute(sql, (content,)).fetchone())
        return torch.from_numpy(np.frombuffer(row[0], np.float32).copy()) if row else None

    def put(self, key: str, embeds: Mapping[str, Tensor]) -> None:
        """Stores vectors (d,) by the hashes of their pictures; one that is there already stays.

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

    It stands in for the CLIP in ``clip_score``, ``ZeroShotClassifier``, ``image_similarity`` and ``duplicate_images``.
    Only pictures given as paths or bytes are cached: those in memory have no file to be known by.

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
            ImageError: a picture cannot be read; names it.
        """
        listed = as_list(images)
        parts = [self._part(listed[i : i + batch_size]) for i in range(0, len(listed), batch_size)]
        return torch.cat(parts)

    def _part(self, images: list[Any]) -> Tensor:
        embeds: list[Tensor | None] = []
        new: list[tuple[int, str | None, Any]] = []
        for place, image in enumerate(images):
            content = None
            if isinstance(image, (str, os.PathLike, bytes)):
                name = image_name(image, place)
                data = image if isinstance(image, bytes) else read_bytes(os.fspath(image))
                content, image = content_hash(data), data
            embeds.append(self.cache.get(self.key, content) if content else None)
            if embeds[-1] is None:
                new.append((place, content, load_image(image, name) if content else image))
        if new:
            encoded = self.clip.encode_image([image for _, _, image in new], batch_size=len(new))
            for (place, _, _), embed in zip(new, encoded, strict=True):
                embeds[place] = embed
            known = zip(new, encoded, strict=True)
            self.cache.put(self.key, {content: embed for (_, content, _), embed in known if content})
        return torch.stack([embed.to(self.clip.device) for embed in embeds if embed is not None])


def cache_key(clip: CLIP) -> str:
    """What a CLIP's vectors are kept under: its fingerprint and precision."""
    return f"{clip.fingerprint()}-{str(clip.dtype).removeprefix('torch.')}"
