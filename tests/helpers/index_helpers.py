"""Images, and indices that are filled without a CLIP."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_guidance.index.entries import Batch, Seen
from clip_guidance.index.store import Store

OLD = 1_500_000_000  # seconds since 1970: a time of change that can be relied on


def save_image(path: Path, seed: int) -> Path:
    """An image of noise, last changed long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    os.utime(path, (OLD, OLD))
    return path


def unit_vectors(count: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    embeds = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return embeds / np.linalg.norm(embeds, axis=1, keepdims=True)


def make_store(folder: Path, dim: int = 8, dtype: str = "float32", **options) -> Store:
    return Store(folder, {"fingerprint": "0" * 16, "model": "none", "dim": dim, "dtype": dtype}, **options)


def put(store: Store, paths: list[str], embeds: np.ndarray, patch: str = "{}") -> None:
    store.apply(Batch([Seen(path, f"hash of {path}", 1, 1, patch) for path in paths], embeds))


def need_milvus() -> None:
    """Skips where Milvus is not installed."""
    pytest.importorskip("pymilvus", reason="Milvus needs pymilvus: pip install 'clip-guidance[index]'")
    pytest.importorskip("milvus_lite", reason="the tests start milvus-lite: pip install 'clip-guidance[index]'")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start_server(folder: Path, port: int) -> subprocess.Popen:
    words = ["server", "--data-dir", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "milvus_lite", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(300):
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return process
        assert process.poll() is None, "milvus-lite server ended"
        time.sleep(0.1)
    process.kill()
    process.wait()
    raise AssertionError("milvus-lite server did not listen within 30 s")


def names(paths) -> list[str]:
    return [Path(path).name for path in paths]


def ranking(clip, paths, query: torch.Tensor) -> list[tuple[str, float]]:
    """What a search must find: all cosines, sorted."""
    cosines = clip.encode_image(paths) @ (query / query.norm())
    return [(str(paths[i]), float(cosines[i])) for i in cosines.argsort(descending=True)]


def check_hits(hits, expected) -> None:
    assert [hit.path for hit in hits] == [path for path, _ in expected]
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], abs=1e-5)


def held(store: Store) -> dict[str, list[float]]:
    """The vector of each path."""
    with store.reading() as vectors:
        return {entry.path: vectors[entry.row].tolist() for entry in store.by_rows(store.rows())}


# An index of random vectors, as the fixture `store_folder` makes it.
HEADER, DIM, COUNT = 64, 8, 12
QUERY = unit_vectors(1, seed=7)


def vector_file(folder: Path) -> Path:
    (path,) = folder.glob("vectors-*")
    return path


def expected_hits(numbers) -> list[tuple[str, float]]:
    cosines = {n: float(unit_vectors(COUNT)[n] @ QUERY[0]) for n in numbers}
    return [(f"/photos/{n}.png", cosine) for n, cosine in sorted(cosines.items(), key=lambda pair: -pair[1])]
