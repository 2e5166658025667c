"""The catalogue refuses what it cannot open: nothing there, other files, another version, damage."""

import pytest
from helpers.index_helpers import held, make_store, put, unit_vectors

from clip_guidance.index import vectors
from clip_guidance.index.schema import FILE
from clip_guidance.index.store import Store
from clip_guidance.index.vectors import ImageIndexError, VectorFile


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "index"


@pytest.fixture
def store(folder):
    store = make_store(folder)
    yield store
    store.close()


def test_without_an_index_there_is_nothing_to_open(folder):
    with pytest.raises(ImageIndexError, match=r"index: there is no image index"):
        Store(folder, None)
    assert not folder.exists()


def test_a_folder_of_other_things_is_refused(folder):
    folder.mkdir()
    (folder / "photo.png").touch()
    with pytest.raises(
        ImageIndexError, match=r"index: expected an image index or a new or empty folder, it holds other"
    ):
        make_store(folder)
    assert [path.name for path in folder.iterdir()] == ["photo.png"]


def test_another_version_is_refused(folder, store):
    store._db.run("UPDATE meta SET value = 99 WHERE key = 'version'")
    with pytest.raises(ImageIndexError, match=r"index: expected an index of version 1, got 99"):
        make_store(folder)


def test_a_damaged_catalogue_is_named(folder, store):
    store.close()
    for path in folder.glob(f"{FILE}*"):
        path.write_bytes(b"no database " * 1000)
    with pytest.raises(ImageIndexError, match=r"index\.sqlite: is damaged: file is not a database"):
        make_store(folder)


def test_a_missing_vector_file_is_named(folder, store):
    put(store, ["a"], unit_vectors(1))
    (path,) = folder.glob("vectors-*")
    path.unlink()
    again = make_store(folder)
    with pytest.raises(ImageIndexError, match=r"index: its vector file vectors-\w+ is missing"):
        held(again)
    assert not again._db.in_transaction
    again.close()


def test_a_full_disk_is_named_and_loses_nothing(folder, store, monkeypatch):
    put(store, ["a"], unit_vectors(1))
    before = held(store)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vectors, "fsync_file", full)
    with pytest.raises(ImageIndexError, match=r"vectors-\w+: cannot be written \(No space left on device\)$"):
        put(store, ["b"], unit_vectors(1, seed=1))
    monkeypatch.undo()
    assert held(store) == before and not store._db.in_transaction and store.damaged() == []


def test_a_making_that_was_killed_is_made_anew(folder, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(VectorFile, "create", killed)
    with pytest.raises(KeyboardInterrupt):
        make_store(folder)
    monkeypatch.undo()
    assert (folder / FILE).exists()
    with pytest.raises(ImageIndexError, match="there is no image index"):
        Store(folder, None)
    store = make_store(folder)
    put(store, ["a"], unit_vectors(1))
    assert list(held(store)) == ["a"]
    store.close()
