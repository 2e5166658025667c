"""Folders of indices that others have made or write-protected: right, or refused by name, in time."""

import os
import shutil
import sqlite3
import warnings
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from helpers.index_helpers import COUNT, QUERY, check_hits, ranking, vector_file
from helpers.limits import little_time, read_only_copy
from hypothesis import given

import clip_guidance as cg
from clip_guidance.index.schema import FILE
from clip_guidance.index.store import Store
from clip_guidance.index.vectors import ImageIndexError

SAVED = Path(__file__).resolve().parents[1] / "saved_before" / "index"


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


@pytest.mark.slow
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
