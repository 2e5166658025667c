"""A Milvus collection beside the catalogue, for approximate search where comparing every vector is too slow.

The catalogue and its vector file stay the truth. Triggers note in the table ``pending`` whose vector is new, changed or
gone (an outbox). Sending brings these to Milvus and crosses them out in one transaction, so that the next sending makes
good a kill at any moment, and a collection that lost something is made anew. Milvus holds numbers and vectors only:
what it finds is looked up, filtered and compared in the catalogue. So filters and cosines are exact here too (those of
Milvus have another last bit from call to call), and metadata changes send nothing.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from clip_guidance._files import shorten
from clip_guidance.index.address import public_address, without_secrets
from clip_guidance.index.entries import Batch
from clip_guidance.index.nearest import nearest
from clip_guidance.index.results import Hit
from clip_guidance.index.schema import OUTBOX
from clip_guidance.index.store import Store
from clip_guidance.index.vectors import ImageIndexError
from clip_guidance.index.where import ALL, Condition, both

SELECTIVE = 0.05  # share of the images up to which a filter is answered exactly: graphs lose recall there
MAX_HITS = 16384  # hits that Milvus gives at once
_PAGE = 1000
_AMONG = "id IN (SELECT value FROM json_each(?))"
_embedded: Counter[str] = Counter()  # stores of this process that use a file; it is let go after the last


class MilvusStore(Store):
    """Keep a catalogue with a Milvus collection.

    Args:
        folder: Folder of the catalogue.
        meta: As for :class:`Store`.
        uri: ``http://host:19530`` (with ``user:password@`` if needed), or a file ``x.db`` for milvus-lite.
        timeout: Seconds to wait for another process that is writing.

    Raises:
        ImageIndexError: Pymilvus is not installed, or Milvus cannot be reached.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any] | None, uri: str, timeout: float = 60.0) -> None:
        self.name = public_address(uri)
        super().__init__(folder, meta, timeout)
        self.collection = f"clip_guidance_{self.meta['id']}"
        self._uri, self._unflushed = uri, False
        self._client: Any = None
        try:
            self._client = _connect(uri)
            _embedded[uri] += 1
            self._reconcile()
        except BaseException:
            self.close()
            raise

    # Keeping the collection what the catalogue is

    def _reconcile(self) -> None:
        """Send what an earlier process could not; make the collection anew if that is not enough."""
        with self.writing():
            if not self._fetch("SELECT 1 FROM sqlite_master WHERE name = 'pending'", ()):
                for statement in OUTBOX:
                    self._db.run(statement)
                self._mark_all()
            if self._request("has_collection", self.collection):
                self._request("load_collection", self.collection)
                self._send()
                if self._size() == self.count():
                    return
            self._mark_all()
        with self.writing():  # While marks are left, every process searches exactly.
            if self._pending():  # no other process has done it meanwhile
                self._make()
                self._send()

    def _mark_all(self) -> None:
        self._db.run("INSERT OR IGNORE INTO pending SELECT id FROM entries")
        self._db.run("INSERT OR IGNORE INTO pending VALUES (0)")  # no image has this id; it marks an empty index too

    def _make(self) -> None:
        from pymilvus import DataType

        self._request("drop_collection", self.collection)
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("embeds", DataType.FLOAT_VECTOR, dim=self.meta["dim"])
        index = self._client.prepare_index_params()
        index.add_index("embeds", index_type="AUTOINDEX", metric_type="COSINE")
        options = {"schema": schema, "index_params": index, "consistency_level": "Strong"}
        self._request("create_collection", self.collection, **options)

    def _pending(self) -> bool:
        return bool(self._fetch("SELECT 1 FROM pending LIMIT 1", ()))

    def _size(self) -> int:
        rows = self._request("query", self.collection, filter="", output_fields=["count(*)"])
        return int(rows[0]["count(*)"])

    def _send(self) -> None:
        """Bring the collection up to date, within ``writing``; a second time is harmless."""
        vectors = self._file().read(self.get("rows"))
        damaged = set(self.damaged_rows(vectors).tolist())
        while numbers := [number for (number,) in self._fetch(f"SELECT id FROM pending LIMIT {_PAGE}", ())]:
            found = self._entries(_AMONG, (json.dumps(numbers),))
            entries = [entry for entry in found if entry.row not in damaged]
            gone = sorted(set(numbers) - {entry.id for entry in entries})
            rows = [{"id": entry.id, "embeds": np.asarray(vectors[entry.row], np.float32)} for entry in entries]
            if rows:
                self._request("upsert", self.collection, rows)
            if gone:
                self._request("delete", self.collection, ids=gone)
            self._db.run(f"DELETE FROM pending WHERE {_AMONG}", (json.dumps(numbers),))
            self._unflushed = True

    def _push(self) -> None:
        try:
            with self.writing():
                self._send()
        except ImageIndexError as error:
            kept = "what was done is kept in the catalogue, and sent when the index is next opened or changed"
            raise ImageIndexError(f"{error}; {kept}") from error

    # What differs from a folder

    def apply(self, batch: Batch) -> list[str]:
        """Apply a batch as ``Store.apply`` does, then send it to Milvus."""
        lost = super().apply(batch)
        self._push()
        return lost

    def delete(self, condition: Condition) -> list[str]:
        """Delete images as ``Store.delete`` does, then send that to Milvus."""
        paths = super().delete(condition)
        self._push()
        return paths

    def flush(self) -> None:
        """End an ingest: until then Milvus searches what is new without an index, which is slow."""
        if self._unflushed:
            self._request("flush", self.collection)
            self._unflushed = False

    def close(self) -> None:
        """Close the catalogue and the connection, and release a file for other processes."""
        if self._client is not None:
            with suppress(ImageIndexError):  # a server that is gone must not prevent closing
                self.flush()
            self._client.close()
            self._client = None
            _release(self._uri)
        super().close()

    def search(
        self, queries: np.ndarray, k: int, condition: Condition = ALL, *, exact: bool = False
    ) -> list[list[Hit]]:
        """Search as ``Store.search`` does, by Milvus where there is no filter or a wide one.

        A query for which Milvus finds too few images is answered exactly.
        """
        self.index_keys(condition)
        total, count = self.count(), self.count(condition)
        wanted = k if condition == ALL else math.ceil(1.5 * k * total / max(1, count)) + 10
        narrow = condition != ALL and count <= SELECTIVE * total
        if exact or narrow or k < 1 or not len(queries) or wanted > MAX_HITS or self._pending():
            return super().search(queries, k, condition)
        vectors = np.asarray(queries, np.float32)
        found = self._request("search", self.collection, vectors, limit=wanted, anns_field="embeds")
        hits = [self._hits(row, query, k, condition) for row, query in zip(found, vectors, strict=True)]
        for i, row in enumerate(hits):
            if len(row) < min(k, count):
                hits[i] = super().search(queries[i : i + 1], k, condition)[0]
        return hits

    def _hits(self, found: list[Mapping[str, Any]], query: np.ndarray, k: int, condition: Condition) -> list[Hit]:
        """Find the best of what Milvus found: images that the catalogue knows and that meet the condition."""
        numbers = Condition(_AMONG, (json.dumps([row["id"] for row in found]),))
        chosen = both(numbers, condition)
        with self.reading() as vectors:
            known = {entry.row: entry for entry in self._entries(chosen.sql, chosen.parameters)}
            rows = self.sound_among(vectors, np.array(sorted(known), np.int64))
            best = nearest(vectors, rows, query[None], k)
        pairs = zip(best.rows[0].tolist(), best.scores[0].tolist(), strict=True)
        return [Hit(known[row].path, score, known[row].metadata) for row, score in pairs]

    def _request(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the client."""
        from pymilvus.exceptions import MilvusException

        try:
            return getattr(self._client, method)(*arguments, **options)
        except MilvusException as error:
            raise ImageIndexError(f"{self.name}: Milvus says: {_reason(error, self._uri)}") from None


def _connect(uri: str) -> Any:
    name = public_address(uri)
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise ImageIndexError(f"{name}: Milvus needs pymilvus: pip install 'clip-guidance[index]'") from error
    try:
        return MilvusClient(uri, dedicated=True)  # a shared connection stays broken where one store broke it
    except Exception as error:  # MilvusException, and ValueError of what reads the address
        hint = "; it serves one process at a time, `milvus-lite server` serves several" if uri.endswith(".db") else ""
        raise ImageIndexError(f"{name}: Milvus cannot be reached: {_reason(error, uri)}{hint}") from None


def _reason(error: Exception, uri: str) -> str:
    """Return what the client says, without the password: it quotes the address that it was given."""
    if not hasattr(error, "message"):  # not of Milvus: parts of the address were misread, perhaps of the password
        return "expected an address such as http://user:password@host:19530, with %40 for @ in a password"
    return shorten(without_secrets(str(error.message), uri), 150)


def _release(uri: str) -> None:
    _embedded[uri] -= 1
    if uri.endswith(".db") and not _embedded[uri]:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(uri)
