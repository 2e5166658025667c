"""Nearest neighbours, near-duplicates and the vector file, against brute force."""

import tracemalloc

import numpy as np
import pytest
from helpers.index_helpers import unit_vectors
from scipy.sparse.csgraph import connected_components

from clip_guidance.index.duplicates import duplicate_groups
from clip_guidance.index.nearest import nearest
from clip_guidance.index.vectors import ImageIndexError, VectorFile, blocks


def on_disk(folder, embeds, dtype="float32") -> np.ndarray:
    file = VectorFile.create(folder / "vectors", embeds.shape[1], dtype)
    file.write(0, embeds)
    return file.read(len(embeds))


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("k", [1, 5, 1000])
def test_nearest_equals_sorting_all(tmp_path, block, k):
    vectors, queries = on_disk(tmp_path, unit_vectors(300)), unit_vectors(4, seed=1)
    for rows in (np.arange(300), np.arange(0, 300, 3), np.array([5, 6, 7, 290]), np.empty(0, np.int64)):
        found = nearest(vectors, rows, queries, k, block)
        cosines = queries.astype(np.float64) @ vectors[rows].astype(np.float64).T
        order = np.argsort(-cosines, axis=1)[:, :k]
        assert found.rows.shape == found.scores.shape == (4, min(k, len(rows)))
        np.testing.assert_array_equal(found.rows, rows[order])
        np.testing.assert_allclose(found.scores, np.take_along_axis(cosines, order, 1), atol=1e-6)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_of_equal_images_the_earlier_is_first(block):
    same = np.tile(np.eye(8, dtype=np.float32)[0], (10, 1))
    assert nearest(same, np.arange(1, 10), same[:1], 4, block).rows.tolist() == [[1, 2, 3, 4]]


def test_nearest_stays_within_a_few_blocks_of_memory(tmp_path):
    vectors = on_disk(tmp_path, unit_vectors(40_000, 64), "float16")
    rows, query = np.arange(0, 40_000, 2), unit_vectors(1, 64, seed=1)
    block = 256 * 64 * 4
    tracemalloc.start()
    nearest(vectors, rows, query, 10, 256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * block < vectors.nbytes / 10


def test_float16_keeps_cosines(tmp_path):
    embeds, query = unit_vectors(200, 64), unit_vectors(1, 64, seed=1)
    found = nearest(on_disk(tmp_path, embeds, "float16"), np.arange(200), query, 200)
    np.testing.assert_allclose(found.scores[0], (embeds @ query[0])[found.rows[0]], atol=1e-3)


def test_blocks_are_the_chosen_rows():
    vectors = unit_vectors(50)
    for rows in (np.arange(50), np.array([0, 3, 4, 5, 6, 49])):
        parts = list(blocks(vectors, rows, 4))
        assert [start for start, _ in parts] == list(range(0, len(rows), 4))
        np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), vectors[rows])
    ((_, part),) = blocks(vectors, np.arange(10, 20), 10)
    assert part.base is vectors or part.base is vectors.base  # without gaps nothing is copied


# Near-duplicates


def clustered(seed: int) -> np.ndarray:
    """Vectors around a few centres, some of them equal, in no order."""
    random = np.random.default_rng(seed)
    embeds = unit_vectors(12, 6, seed)[random.integers(0, 12, 90)] + random.choice([0, 0.05, 0.3], (90, 1)) * (
        random.normal(size=(90, 6))
    )
    return (embeds / np.linalg.norm(embeds, axis=1, keepdims=True)).astype(np.float32)


def components(embeds: np.ndarray, threshold: float) -> list[list[int]]:
    labels = connected_components(embeds @ embeds.T >= threshold - 1e-6)[1]
    groups = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]
    return sorted(group for group in groups if len(group) > 1)


@pytest.mark.parametrize("block", [1, 4, 33, 200])
@pytest.mark.parametrize("threshold", [0.7, 0.95, 0.999, 1.0])
def test_duplicates_are_the_components(block, threshold):
    for seed in range(3):
        embeds = clustered(seed)
        groups = duplicate_groups(embeds, threshold, block=block)
        assert groups == components(embeds, threshold)
        assert 0 < sum(map(len, groups)) <= 90


def test_duplicates_among_chosen_rows(tmp_path):
    embeds = clustered(0)
    rows = np.arange(0, 90, 2)
    groups = duplicate_groups(on_disk(tmp_path, embeds), 0.95, rows, block=8)
    assert groups == [[int(rows[i]) for i in group] for group in components(embeds[rows], 0.95)]


def test_a_chain_is_one_group():
    angles = np.arange(20) * 0.1  # neighbours have cosine 0.995, the ends -0.32
    embeds = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    order = np.random.default_rng(0).permutation(20)
    assert duplicate_groups(embeds[order], 0.99, block=3) == [list(range(20))]
    assert duplicate_groups(embeds[order], 0.999, block=3) == []


def test_equal_vectors_in_half_precision_reach_one(tmp_path):
    embeds = np.repeat(unit_vectors(3, 64), 2, axis=0)
    assert duplicate_groups(on_disk(tmp_path, embeds, "float16"), 1.0) == [[0, 1], [2, 3], [4, 5]]


def test_nothing_has_no_duplicates():
    assert duplicate_groups(np.empty((0, 4), np.float32)) == []


@pytest.mark.parametrize("threshold", [0, -1, 1.01, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ValueError, match=rf"threshold: expected a cosine in \(0, 1\], got {threshold}"):
        duplicate_groups(unit_vectors(2), threshold)


# The vector file


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("float16", 2)])
def test_rows_are_appended_and_overwritten(tmp_path, dtype, itemsize):
    embeds = unit_vectors(9)
    file = VectorFile.create(tmp_path / "vectors", 8, dtype)
    assert file.read(0).shape == (0, 8)
    file.write(0, embeds[:5])
    before = file.read(3)
    file.write(3, embeds[5:])  # rows 3 and 4 were acknowledged by nobody
    assert (tmp_path / "vectors").stat().st_size == 64 + 7 * 8 * itemsize
    again = VectorFile(tmp_path / "vectors").read(7)
    assert again.dtype == dtype
    np.testing.assert_array_equal(again, np.concatenate([embeds[:3], embeds[5:]]).astype(dtype))
    np.testing.assert_array_equal(before, again[:3])


def test_a_damaged_vector_file_is_named(tmp_path):
    path = tmp_path / "vectors"
    file = VectorFile.create(path, 8, "float32")
    file.write(0, unit_vectors(4))
    assert np.array_equal(file.read(5), unit_vectors(4))  # the store names the images of those that are not there
    for content in (b"", b"GIF89a" + bytes(100), b"CLIPVEC1" + bytes(56)):
        path.write_bytes(content)
        with pytest.raises(ImageIndexError, match=r"vectors: expected a vector file, its first bytes are b'"):
            VectorFile(path)
