"""An index of images: add files, search them by text, image or a weighted sum of both, filter by metadata.

Search in a folder is exact: every vector is compared. The same calls on the address of a Milvus search there.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from clip_guidance.clip import DualEncoder, as_clip
from clip_guidance.clip.domain import DomainCheck
from clip_guidance.images.load import find_images
from clip_guidance.index.add import add_batch, is_unchanged
from clip_guidance.index.compact import compact
from clip_guidance.index.duplicates import duplicate_groups
from clip_guidance.index.entries import Entry, Paths, Where, as_paths, chosen, exactly
from clip_guidance.index.export import export
from clip_guidance.index.metadata import Metadata, patch, patches
from clip_guidance.index.open import open_store, other_model
from clip_guidance.index.query import Query, query_embeds
from clip_guidance.index.results import Changes, Hit, Hits, Verification
from clip_guidance.index.store import Store
from clip_guidance.index.vectors import ImageIndexError, short_name
from clip_guidance.index.verify import verify
from clip_guidance.index.where import compile_where


class ImageIndex:
    """Search images by meaning; made by :meth:`open`, usable as a context manager.

    Any number of processes may read while one writes; a second writer waits for the first, batch by batch. What a
    method that changes the index has returned is on the disk and survives a kill.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import clip_guidance as cg
        >>> from PIL import Image
        >>> folder = tempfile.TemporaryDirectory()
        >>> for colour in ("red", "blue"):
        ...     Image.new("RGB", (64, 64), colour).save(Path(folder.name, f"{colour}.png"))
        >>> clip = cg.CLIP.from_pretrained("emoji")
        >>> with cg.ImageIndex.open(Path(folder.name, "index"), clip) as index:
        ...     changes = index.add(folder.name, metadata={"album": "summer"})
        ...     hits = index.search("2 * a blue square - red", k=1, where="album = summer")
        >>> len(changes.added), Path(hits[0].path).name
        (2, 'blue.png')
        >>> folder.cleanup()
    """

    def __init__(self, store: Store, clip: DualEncoder | None = None) -> None:
        self._store, self.clip = store, clip

    @classmethod
    def open(
        cls,
        address: str | os.PathLike[str],
        clip: DualEncoder | None = None,
        *,
        create: bool = True,
        dtype: str = "float32",
        catalogue: str | os.PathLike[str] | None = None,
    ) -> ImageIndex:
        """Open an index, or make it.

        Args:
            address: A folder, new or empty or made by this method; or Milvus, embedded (``./x.db``) or a server
                (``http://host:19530``), which searches approximately and needs the extra ``index``.
            clip: The CLIP whose vectors it holds. Without a CLIP everything but adding and searching works.
            create: Whether to make an index where there is none.
            dtype: Precision of a new index's vectors: "float32", or "float16" (half the disk, cosines within 0.001).
            catalogue: With Milvus, the folder of what Milvus does not hold: paths, metadata, and the vectors
                themselves, from which the collection can be made anew. By default ``./x.db.catalogue``, or a folder
                named after the server among the user's data (``$XDG_DATA_HOME``). This folder is an index too, and can
                be opened as such.

        Raises:
            ImageIndexError: There is no index and none shall or can be made, the index is damaged or was made with
                another CLIP, the folder holds other files, or Milvus cannot be reached.
        """
        clip = None if clip is None else as_clip(clip)
        return cls(open_store(os.fspath(address), clip, create, dtype, catalogue), clip)

    def add(self, paths: Paths, metadata: Metadata = None, batch_size: int = 64) -> Changes:
        """Add images, and bring those that the index holds up to date; see :meth:`iter_add`."""
        return sum(self.iter_add(paths, metadata, batch_size), Changes())

    def iter_add(self, paths: Paths, metadata: Metadata = None, batch_size: int = 64) -> Iterator[Changes]:
        """Add images, a batch at a time.

        Unchanged files are not read again, moved files not encoded again, except where the index lost their vectors. A
        file that cannot be read is reported, and the others are added.

        Args:
            paths: Files, folders (recursively) and globs.
            metadata: JSON values by key for every image, or a function of its absolute path; put over what an image has
                already, where None removes a key.
            batch_size: Files read, encoded and acknowledged at once.

        Yields:
            What each batch changed. The change is then on the disk, whatever happens to this process.

        Raises:
            ImageIndexError: The index was opened without a CLIP, or another process does not stop writing.
            ValueError: The metadata is no JSON.
        """
        clip, patch_of = self._clip(), patches(metadata)
        domain = DomainCheck(clip)
        files = list(dict.fromkeys(os.path.abspath(path) for path in find_images(as_paths(paths))))
        for start in range(0, len(files), batch_size):
            yield add_batch(self._store, clip, files[start : start + batch_size], patch_of, domain)
        self._store.flush()
        domain.warn()

    def sync(self, paths: Paths = (), metadata: Metadata = None, batch_size: int = 64) -> Changes:
        """Make the index what the files are: add ``paths``, renew what has changed, remove what is gone.

        An image that has moved keeps its metadata if its new place is among ``paths``; otherwise it is gone. An image
        on a drive that is not there is gone too: :meth:`verify` tells what is missing without changing anything.
        """
        clip = self._clip()
        changes, domain = self.add(paths, metadata, batch_size), DomainCheck(clip)
        entries = self._store.entries()
        while page := list(itertools.islice(entries, batch_size)):
            gone = [entry.path for entry in page if not os.path.exists(entry.path)]
            bad = {*gone, *self._store.damaged(exactly(entry.path for entry in page))}
            other = [entry.path for entry in page if entry.path in bad or not is_unchanged(entry)]
            renewed = add_batch(self._store, clip, [path for path in other if path not in gone], patches(None), domain)
            renewed.unchanged = 0  # add has counted these already
            changes += renewed
            changes.removed += self._store.delete(exactly(gone)) if gone else []
        self._store.flush()
        domain.warn()
        return changes

    def delete(self, paths: Paths | None = None, *, where: Where = None) -> list[str]:
        """Remove images from the index; their files stay.

        Args:
            paths: Images, and folders with all that the index holds of them.
            where: A filter of metadata (:mod:`clip_guidance.index.where`); with ``paths``, both must hold.

        Returns:
            The paths removed.
        """
        removed = self._store.delete(condition := chosen(paths, where))
        self._store.warn_if_none(removed, condition)
        return removed

    def update_metadata(self, metadata: Mapping[str, Any], paths: Paths | None = None, *, where: Where = None) -> int:
        """Put metadata over that of chosen images (as for :meth:`delete`); None removes a key.

        Returns:
            The number of images chosen.
        """
        count = self._store.patch(condition := chosen(paths, where), patch(metadata))
        self._store.warn_if_none(count, condition)
        return count

    def compact(self) -> int:
        """Free the disk of deleted and replaced vectors; return their number."""
        return compact(self._store)

    def search(self, query: Query, k: int = 10, where: Where = None, *, exact: bool = False) -> Hits:
        """Search the images that match a query best.

        Args:
            query: A text, an image, or a weighted sum in words: ``2 * red apple - ./b.png``
                (:mod:`clip_guidance.index.query`); or a list of :class:`~clip_guidance.index.query.Term`.
            k: Number of images at most.
            where: A filter: ``year >= 2020 and album in (a, b)`` (:mod:`clip_guidance.index.where`), or a mapping of
                keys to a value or a list of values. A key that no image has is warned of.
            exact: Compare every vector, also where Milvus could answer approximately. Filters are always exact.

        Returns:
            At most ``k`` hits, best first: a list, which a notebook shows as images.

        Raises:
            ImageIndexError: The index was opened without a CLIP.
            ImageError: An image of the query cannot be read.
            ValueError: The query or the filter cannot be read.
        """
        condition = compile_where(where)  # a bad filter fails before the model is run
        embeds = query_embeds(self._clip(), query)
        hits = Hits(self._store.search(embeds[None].numpy(), k, condition, exact=exact)[0])
        self._store.warn_if_none(hits, condition)
        return hits

    def search_embeds(
        self,
        embeds: torch.Tensor | np.ndarray,
        fingerprint: str,
        k: int = 10,
        where: Where = None,
        *,
        exact: bool = False,
    ) -> list[list[Hit]]:
        """Search for many queries at once that are vectors already.

        Args:
            embeds: Unit vectors (q, d).
            fingerprint: Fingerprint of the CLIP they come from, ``CLIP.fingerprint()``.
            k: Number of images for each query at most.
            where: As for :meth:`search`.
            exact: As for :meth:`search`.

        Raises:
            ImageIndexError: The vectors come from another CLIP.
            ValueError: The shape does not fit, or the vectors are not of unit length.
        """
        if fingerprint != self.fingerprint:
            raise other_model(self._store, fingerprint)
        queries = embeds.detach().float().cpu().numpy() if isinstance(embeds, torch.Tensor) else np.asarray(embeds)
        if queries.ndim != 2 or queries.shape[1] != self._store.meta["dim"]:
            raise ValueError(f"embeds: expected the shape (q, {self._store.meta['dim']}), got {queries.shape}")
        if not np.allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-2):
            raise ValueError("embeds: expected unit vectors")
        hits = self._store.search(queries, k, condition := compile_where(where), exact=exact)
        self._store.warn_if_none(not hits or any(hits), condition)
        return hits

    def duplicates(self, threshold: float = 0.95, where: Where = None) -> list[list[str]]:
        """Group images that are alike: chains of cosines of at least ``threshold``; every pair is compared.

        Returns:
            Groups of at least two paths, the longest in the index first.
        """
        condition = compile_where(where)
        with self._store.reading() as vectors:
            compared = self._store.sound(vectors, condition)
            self._store.warn_if_none(len(compared), condition)
            groups = duplicate_groups(vectors, threshold, compared)
            return [[entry.path for entry in self._store.by_rows(rows)] for rows in groups]

    def verify(self, *, full: bool = False) -> Verification:
        """Compare the files with the index and change nothing; :meth:`sync` repairs what this finds.

        Args:
            full: Read every file, and all of the catalogue; otherwise files whose size and time are as known pass for
                intact. The vectors are compared with their checksums in any case.

        Raises:
            ImageIndexError: The catalogue is damaged.
        """
        return verify(self._store, full)

    def export(self, folder: str | os.PathLike[str]) -> int:
        """Write ``embeds.safetensors`` ("embeds", float32 (n, d)) and ``entries.jsonl`` in the same order.

        Returns:
            The number of images.
        """
        return export(self._store, Path(folder))

    def entries(self, where: Where = None) -> Iterator[Entry]:
        """List all images that pass a filter, by age."""
        condition = compile_where(where)
        self._store.warn_if_none(not condition.keys or self._store.count(condition), condition)
        return self._store.entries(condition)

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the CLIP whose vectors the index holds."""
        return str(self._store.meta["fingerprint"])

    @property
    def model(self) -> str:
        """Return the name of the CLIP that the index was made with."""
        return str(self._store.meta["model"])

    def __len__(self) -> int:
        return self._store.count()

    def __contains__(self, path: str | os.PathLike[str]) -> bool:
        return self._store.by_path(os.path.abspath(path)) is not None

    def close(self) -> None:
        """Close the index; the object is of no use afterwards."""
        self._store.close()

    def __enter__(self) -> ImageIndex:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _clip(self) -> DualEncoder:
        if self.clip is None:
            cure = "was opened without a CLIP: ImageIndex.open(address, clip)"
            raise ImageIndexError(f"{short_name(self._store.folder)}: {cure}")
        return self.clip
