"""Vectors that are damaged are named, not searched, and encoded anew; also of an index made before checksums."""

import contextlib
import json
import os
import shutil
import sqlite3
import warnings
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers.index_helpers import (
    COUNT,
    DIM,
    HEADER,
    QUERY,
    check_hits,
    expected_hits,
    names,
    put,
    ranking,
    save_image,
    unit_vectors,
    vector_file,
)
from hypothesis import given, settings

import clip_guidance as cg
from clip_guidance.index.compact import compact
from clip_guidance.index.schema import FILE
from clip_guidance.index.store import Store
from clip_guidance.index.vectors import ImageIndexError

SAVED = Path(__file__).resolve().parents[1] / "saved_before" / "index"


# ---------------------------------------------------------------- damaged vectors


def test_what_was_cut_off_is_named_until_it_is_added_again(made, clip, images, tmp_path):
    os.truncate(vector_file(made), HEADER + 3 * 12 * 4 + 5)
    apple = clip.encode_text("apple")[0]
    more = save_image(tmp_path / "more" / "g.png", 9)
    with cg.ImageIndex.open(made, clip) as index:
        with pytest.warns(UserWarning, match=r"index: the vectors of 3 images, such as \S+d\.png, are damaged: they"):
            check_hits(index.search("apple"), ranking(clip, images[:3], apple))
        assert index.add(more).added == [str(more)]  # behind a hole of zeros
        check_hits(index.search("apple"), ranking(clip, [*images[:3], more], apple))  # said once
    with cg.ImageIndex.open(made, clip) as index:
        found = index.verify(full=True)
        assert names(found.damaged) == ["d.png", "e.png", "f.png"] and found.intact == 7
        with pytest.warns(UserWarning, match="3 images"):
            assert index.export(tmp_path / "export") == 4
        changes = index.add(images)
        assert names(changes.repaired) == ["d.png", "e.png", "f.png"] and changes.unchanged == 6 and not changes.added
        check_hits(index.search("apple"), ranking(clip, [*images, more], apple))
        assert index.verify().damaged == [] and next(index.entries("year = 2020")).metadata == {"year": 2020}


def test_sync_repairs_everything_and_moves_take_no_damage_along(made, clip, images, tmp_path):
    with vector_file(made).open("r+b") as file:
        file.seek(HEADER)
        file.write(b"\0" * 12 * 4 * 2)
    moved = images[0].rename(images[0].with_name("z.png"))
    apple = clip.encode_text("apple")[0]
    with cg.ImageIndex.open(made, clip) as index:
        changes = index.add(moved)
        assert [move.new for move in changes.moved] == changes.repaired == [str(moved)]
        assert index.sync().repaired == [str(images[1])]
        check_hits(index.search("apple"), ranking(clip, [moved, *images[1:]], apple))


def test_a_damaged_vector_whose_image_is_gone_stays_out(made, clip, images):
    with vector_file(made).open("r+b") as file:
        file.seek(HEADER + 12 * 4 + 1)
        file.write(b"\x55")
    images[1].unlink()
    with cg.ImageIndex.open(made, clip) as index:
        index.add(images[0])
        (skipped,) = [entry for entry in index.add(images).skipped if "damaged" not in entry.reason]
        assert (skipped.path, skipped.reason) == (str(images[1]), "no such file")
        assert names(index.verify().damaged) == ["b.png"]
        assert compact(index._store) == 0 and names(index.verify().damaged) == ["b.png"]
        with pytest.warns(UserWarning, match="1 images"):
            assert sorted(names(hit.path for hit in index.search("apple"))) == ["a.png", *(f"{x}.png" for x in "cdef")]


@st.composite
def damage(draw):
    """What becomes of the bytes after the header: some changed, moved, zeroed, cut off or added."""
    size = COUNT * DIM * 4
    kind = draw(st.sampled_from(["flip", "zero", "swap", "cut", "grow"]))
    start, length = draw(st.integers(0, size - 1)), draw(st.integers(1, 64))

    def change(data: bytearray) -> bytes:
        part = data[start : start + length]
        if kind == "cut":
            return bytes(data[:start])
        if kind == "grow":
            return bytes(data) + b"x" * length
        if kind == "flip":
            part = bytes(byte ^ (1 << start % 8) for byte in part)
        elif kind == "zero":
            part = bytes(len(part))
        else:
            part = part[::-1]
        return bytes(data[:start]) + part + bytes(data[start + len(part) :])

    return change


@settings(max_examples=25)
@given(damage())
def test_whatever_became_of_the_vectors_only_intact_ones_are_scored(store_folder, tmp_path_factory, change):
    folder = shutil.copytree(store_folder, tmp_path_factory.mktemp("damaged") / "index")
    path = vector_file(folder)
    before = path.read_bytes()[HEADER:]
    after = change(bytearray(before))
    path.write_bytes(path.read_bytes()[:HEADER] + after)
    width = DIM * 4
    same = [n for n in range(COUNT) if after[n * width : (n + 1) * width] == before[n * width : (n + 1) * width]]
    store = Store(folder, None)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        (hits,) = store.search(QUERY, COUNT)
    check_hits(hits, expected_hits(same))
    assert len(told) == (len(same) < COUNT) and all(len(str(warning.message)) <= 300 for warning in told)
    assert {int(Path(name).stem) for name in store.damaged()} == set(range(COUNT)) - set(same)
    store.close()


def test_vectors_are_compared_once_per_opening(store_folder, monkeypatch):
    from clip_guidance.index import checksums

    compared, crc32 = [], checksums.zlib.crc32
    monkeypatch.setattr(checksums.zlib, "crc32", lambda data: compared.append(1) or crc32(data))
    store = Store(store_folder, None)
    with store.reading() as vectors:
        assert len(store.sound(vectors)) == COUNT == len(compared)
    for _ in range(3):
        store.search(QUERY, 2)
    store.close()
    assert len(compared) == COUNT


@pytest.mark.parametrize(("place", "value"), [(8, 9), (12, 2)])
def test_the_head_of_the_vector_file_is_compared_with_the_catalogue(store_folder, tmp_path, place, value):
    folder = shutil.copytree(store_folder, tmp_path / "index")
    with vector_file(folder).open("r+b") as file:
        file.seek(place)
        file.write(bytes([value]))
    store = Store(folder, None)
    says = r"its head says (9 of float32|8 of float16)$"
    with pytest.raises(ImageIndexError, match=rf"vectors-\w+: expected vectors of 8 numbers of float32, {says}"):
        store.search(QUERY, 2)
    store.close()


# ---------------------------------------------------------------- made before there were checksums


def saved_copy(folder: Path, **metadata) -> list[str]:
    shutil.copytree(SAVED, folder)
    with contextlib.closing(sqlite3.connect(folder / FILE)) as file, file:
        if metadata:
            file.execute("UPDATE entries SET metadata = ? WHERE row = 0", (json.dumps(metadata),))
        return [path for (path,) in file.execute("SELECT path FROM entries ORDER BY row")]


def test_an_index_without_checksums_gets_them_with_the_next_change(tmp_path):
    paths = saved_copy(tmp_path / "index", **{"größe": 3})
    store = Store(tmp_path / "index", None)
    vector = np.array(store._file().read(4)[2:3])
    before = store.search(vector, 3)
    put(store, ["/new.png"], vector)
    assert [hit.path for hit in store.search(vector, 4)[0]][:2] == [paths[1], "/new.png"]
    assert [hit for hit in store.search(vector, 4)[0] if hit.path != "/new.png"] == before[0]
    index = cg.ImageIndex(store)
    assert [entry.path for entry in index.entries({"größe": 3})] == [paths[0]]  # its key was written as gr\u00f6\u00dfe
    store.close()
    with vector_file(tmp_path / "index").open("r+b") as file:
        file.seek(HEADER)
        file.write(b"\1")
    store = Store(tmp_path / "index", None)
    assert store.damaged() == [paths[0]]
    store.close()


def test_a_hole_of_zeros_is_found_without_checksums(tmp_path):
    paths = saved_copy(tmp_path / "index")
    store = Store(tmp_path / "index", None)
    dim = store.meta["dim"]
    width = dim * store._file().dtype.itemsize
    with vector_file(tmp_path / "index").open("r+b") as file:
        file.seek(HEADER + 2 * width)  # row 1 belongs to no image any more
        file.write(bytes(width))
    assert store.damaged() == [paths[1]]
    put(store, ["/new.png"], unit_vectors(1, dim))
    assert store.damaged() == [paths[1]]
    store.close()
