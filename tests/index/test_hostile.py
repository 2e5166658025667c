"""Folders of indices that others have damaged, made or write-protected: right, or refused by name, in time."""

import json
import os
import shutil
import sqlite3
import warnings
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from helpers.index_helpers import check_hits, make_store, names, put, ranking, save_image, unit_vectors
from helpers.limits import little_time, read_only_copy
from hypothesis import given, settings

import clip_guidance as cg
from clip_guidance.index.compact import compact
from clip_guidance.index.schema import FILE
from clip_guidance.index.store import Store
from clip_guidance.index.vectors import ImageIndexError

SAVED = Path(__file__).resolve().parents[1] / "saved_before" / "index"
HEADER, DIM, COUNT = 64, 8, 12
QUERY = unit_vectors(1, seed=7)


@pytest.fixture
def made(tmp_path, clip, images):
    """The folder of an index of six images; nobody has it open."""
    with cg.ImageIndex.open(tmp_path / "index", clip) as index:
        index.add(images, metadata={"year": 2020})
    return tmp_path / "index"


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory):
    """The folder of an index of random vectors, number i with the metadata n = i."""
    folder = tmp_path_factory.mktemp("made") / "index"
    store = make_store(folder)
    for number, vector in enumerate(unit_vectors(COUNT)):
        put(store, [f"/photos/{number}.png"], vector[None], json.dumps({"n": number}))
    store.close()
    return folder


def vector_file(folder: Path) -> Path:
    (path,) = folder.glob("vectors-*")
    return path


def expected_hits(numbers) -> list[tuple[str, float]]:
    cosines = {n: float(unit_vectors(COUNT)[n] @ QUERY[0]) for n in numbers}
    return [(f"/photos/{n}.png", cosine) for n, cosine in sorted(cosines.items(), key=lambda pair: -pair[1])]


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
    with sqlite3.connect(folder / FILE) as file:
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


# ---------------------------------------------------------------- folders that may not be written


def test_an_index_in_a_read_only_folder_is_searched(made, clip, images):
    expected = ranking(clip, images, clip.encode_text("apple")[0])
    with read_only_copy(made) as folder, cg.ImageIndex.open(folder, clip) as index:
        check_hits(index.search("apple"), expected)
        assert len(index) == 6 and index.verify(full=True).damaged == []
        with pytest.raises(ImageIndexError, match=r"copy: it may not be written here$"):
            index.delete(images[0])


def test_an_index_of_another_time_in_a_read_only_folder_is_searched():
    with read_only_copy(SAVED) as folder:
        store = Store(folder, None)
        vector = np.array(store._file().read(4)[2:3])
        assert store.search(vector, 1)[0][0].score == pytest.approx(1, abs=1e-5)
        store.close()


def test_a_log_that_was_not_merged_is_read_or_asked_for(made, clip):
    with cg.ImageIndex.open(made, clip) as index:
        index.update_metadata({"new": True}, where="year = 2020")  # lies in the log while the index is open
        with read_only_copy(made) as folder, cg.ImageIndex.open(folder) as copy:
            assert len(list(copy.entries("new = true"))) == 6
        (made / f"{FILE}-shm").rename(made.parent / "shm")
        try:
            with (
                read_only_copy(made) as folder,
                pytest.raises(ImageIndexError, match=r"copy: its last changes are in index\.sqlite-wal, and it"),
            ):
                cg.ImageIndex.open(folder)
        finally:
            (made.parent / "shm").rename(made / f"{FILE}-shm")


# ---------------------------------------------------------------- foreign folders


def use(folder: Path) -> list[str]:
    """Everything that reads; returns what was found, without an error or a hang."""
    with little_time(20), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with cg.ImageIndex.open(folder, create=False) as index:
            store = index._store
            found = store.search(QUERY, COUNT)[0]
            list(index.entries("n >= 3"))
            index.verify(full=True)
            index.duplicates(0.99)
            index.export(folder.parent / "export")
            return [hit.path for hit in found]


def refused(folder: Path) -> str:
    with pytest.raises(ImageIndexError) as caught:
        use(folder)
    message = str(caught.value)
    assert len(message) <= 300 and "foreign" in message
    return message


@pytest.fixture
def foreign(store_folder, tmp_path):
    return shutil.copytree(store_folder, tmp_path / "foreign" / "index")


def change(folder: Path, *statements: str) -> None:
    file = sqlite3.connect(folder / FILE, isolation_level=None)
    for statement in statements:
        file.execute(statement)
    file.close()


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i"


@pytest.mark.parametrize(
    "statements",
    [
        ("ALTER TABLE entries RENAME TO held", f"CREATE VIEW entries AS {ENDLESS} AS id, 'a' AS path FROM n"),
        ("DROP TABLE meta", f"CREATE VIEW meta AS {ENDLESS} AS key, 1 AS value FROM n"),
        (f"CREATE TRIGGER t AFTER INSERT ON entries BEGIN INSERT INTO meta {ENDLESS}, 1 FROM n; END",),
        ("DROP TABLE entries", "CREATE VIRTUAL TABLE entries USING fts5(id, path, hash, size, mtime_ns, row)"),
        ("DROP TABLE entries",),
        ("CREATE TABLE notes (text)",),
    ],
)
def test_another_schema_is_refused(foreign, statements):
    try:
        change(foreign, *statements)
    except sqlite3.OperationalError as error:
        pytest.skip(f"this SQLite cannot make it: {error}")
    assert "index.sqlite: is damaged: holds the" in (said := refused(foreign)) or "no such table: entries" in said


VALUES = ["NULL", "-1", "''", "x'00ff'", "1e300", "9223372036854775807", "'../../etc/passwd'", f"'{'x' * 9999}'"]


@pytest.mark.parametrize("key", ["version", "fingerprint", "model", "dim", "dtype", "vectors", "rows", "changes", "id"])
def test_meta_of_other_types_is_refused(foreign, key):
    """Of some keys some values will do: any text is the name of a model."""
    for value in VALUES:
        change(foreign, f"UPDATE meta SET value = {value} WHERE key = '{key}'")
        text = value.startswith("'") and len(value) < 64 and (value != "''" or key == "model")
        if not (text and key in ("model", "fingerprint")):
            said = refused(foreign)
            assert (f"its {key} is" in said) or (key == "version" and "expected an index of version 1" in said)
    change(foreign, f"DELETE FROM meta WHERE key = '{key}'")
    assert "None" in refused(foreign)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("path", "x'ff00'"),
        ("path", "''"),
        ("hash", "x'01'"),
        ("size", "'large'"),
        ("mtime_ns", "1.5"),
        ("row", "'one'"),
        ("row", "-1"),
        ("row", "x'01'"),
        ("row", "2.5"),
        ("metadata", "'{'"),
        ("metadata", "'[1]'"),
        ("metadata", "x'00'"),
        ("metadata", f"'{'[' * 5000}'"),
        ("metadata", "'{\"a\":' || CAST(x'ff' AS TEXT) || '}'"),
    ],
)
def test_entries_of_other_types_are_refused(foreign, column, value):
    change(foreign, f"UPDATE entries SET {column} = {value} WHERE id = 3")
    assert FILE in (said := refused(foreign)) or "index: " in said


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", [FILE, f"{FILE}-wal", f"{FILE}-shm", f"{FILE}-journal", "vectors"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_whatever_is_no_file_is_refused(foreign, name, kind):
    path = vector_file(foreign) if name == "vectors" else foreign / name
    path.unlink(missing_ok=True)
    {"pipe": os.mkfifo, "folder": os.mkdir, "loop": lambda path: os.symlink(path, path)}[kind](path)
    assert ("cannot be" in (said := refused(foreign))) or "is missing" in said or "there is no image index" in said


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_a_catalogue_of_which_any_bytes_changed_is_right_or_refused(store_folder, tmp_path_factory, bytes_, cut):
    folder = shutil.copytree(store_folder, tmp_path_factory.mktemp("foreign") / "index")
    data = bytearray((folder / FILE).read_bytes())
    for place, byte in bytes_:
        data[place % len(data)] = byte
    (folder / FILE).write_bytes(data[: bytes_[0][0] % len(data)] if cut else data)
    try:
        found = use(folder)
    except ValueError as error:
        assert len(str(error)) <= 300 and str(folder.parent.name) in str(error)
        return
    # No sum guards the pages of SQLite: a changed path or row is another path. The scores are those of the vectors.
    assert len(found) == len(set(found)) <= COUNT


# ---------------------------------------------------------------- keys that no image has


def test_a_filter_by_a_key_that_no_image_has_says_so(made, clip):
    said = r"where: no image of \S+index has the key 'foo'; the keys there are: path, year$"
    with cg.ImageIndex.open(made, clip) as index:
        vector = clip.encode_text(["apple"])
        for find in (
            lambda: index.search("apple", where="foo = 1"),
            lambda: index.search_embeds(vector, clip.fingerprint(), where={"foo": [1, 2]})[0],
            lambda: index.duplicates(where="foo in (1, 2)"),
            lambda: list(index.entries("year > 2000 and foo != 1")),
            lambda: index.delete(where="foo ~ x"),
        ):
            with pytest.warns(UserWarning, match=said):
                assert find() == []
        with pytest.warns(UserWarning, match=r"has the key 'year\.month'"):
            assert index.update_metadata({"a": 1}, where="year.month = 1") == 0
        # nothing is said where the key is known, or where its absence is asked for
        assert index.search("apple", where="year = 1") == [] and len(index.search("apple", where="foo = null")) == 6
        assert len(index.search("apple", where="foo in (null, 1) and year != 1")) == 6
        index.update_metadata({f"key number {n}": torch.tensor(n).item() for n in range(20)}, where="year = 2020")
        with pytest.warns(UserWarning, match=r"path, .*, …$") as told:
            index.search("apple", where=f"{'k' * 200} = 1")
        assert len(str(told[0].message)) <= 300
