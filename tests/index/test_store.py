"""The catalogue: transactions, kills between two steps of one, several processes."""

import sqlite3
import threading

import numpy as np
import pytest
from helpers.index_helpers import held, make_store, put, unit_vectors

from clip_guidance.index.compact import compact
from clip_guidance.index.entries import Batch, Seen, exactly, inside
from clip_guidance.index.store import Store
from clip_guidance.index.vectors import ImageIndexError, VectorFile
from clip_guidance.index.where import ALL, compile_where


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "index"


@pytest.fixture
def store(folder):
    store = make_store(folder)
    yield store
    store.close()


def test_what_is_put_is_held_after_reopening(folder, store):
    embeds = unit_vectors(5)
    put(store, list("abc"), embeds[:3])
    put(store, list("bd"), embeds[3:])  # b is another image now
    expected = {"a": embeds[0], "b": embeds[3], "c": embeds[2], "d": embeds[4]}
    for opened in (store, again := make_store(folder)):
        assert held(opened) == {path: vector.tolist() for path, vector in expected.items()}
        assert opened.count() == 4 and opened.get("rows") == 5
    again.close()


@pytest.mark.parametrize("written", [0, 0.5, 1])
def test_a_kill_between_vectors_and_commit_leaves_the_state_before(folder, store, monkeypatch, written):
    put(store, ["a"], unit_vectors(1))
    before, write = held(store), VectorFile.write

    def killed(self, row, embeds):
        write(self, row, embeds[: int(written * len(embeds))])
        raise KeyboardInterrupt

    monkeypatch.setattr(VectorFile, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        put(store, list("abcd"), unit_vectors(4, seed=1))
    monkeypatch.undo()
    again = make_store(folder)
    assert held(again) == held(store) == before
    after = unit_vectors(2, seed=2)
    put(again, ["c", "d"], after)  # over what was left
    assert held(store) == {**before, "c": after[0].tolist(), "d": after[1].tolist()}
    again.close()


def test_a_reader_keeps_its_state_while_others_write_and_compact(folder, store):
    put(store, list("abcd"), unit_vectors(4))
    reader, before = make_store(folder), held(store)
    with reader.reading() as vectors:
        assert reader.count() == 4  # from here on its state is fixed
        store.delete(exactly(["a", "b"]))
        compact(store)
        put(store, list("cxyz"), unit_vectors(4, seed=1))
        assert {e.path: vectors[e.row].tolist() for e in reader.by_rows(reader.rows())} == before
    assert held(reader) == held(store) != before
    assert sorted(held(reader)) == list("cdxyz")
    reader.close()


def test_readers_never_see_half_a_batch(folder, store):
    """A thread writes batches of 5 images with one vector each; a reader sees all of a batch or nothing."""
    stop = threading.Event()

    def write():
        writer = make_store(folder)
        for number in range(40):
            vector = np.full((5, 8), number, np.float32)
            put(writer, [f"{number}-{i}" for i in range(5)], vector)
            if number % 10 == 9:
                writer.delete(exactly(f"{number - 1}-{i}" for i in range(5)))
                compact(writer)
        writer.close()
        stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    states = set()
    while not stop.is_set():
        found = held(store)
        assert len(found) % 5 == 0
        assert all(vector == [float(path.split("-")[0])] * 8 for path, vector in found.items())
        states.add(len(found))
    thread.join()
    assert len(held(store)) == 180 and len(states) > 3


def test_a_second_writer_waits(folder, store):
    other = make_store(folder)
    started = threading.Event()

    def write():
        started.set()
        put(other, ["b"], unit_vectors(1))

    with store.writing():
        thread = threading.Thread(target=write)
        thread.start()
        started.wait()
        thread.join(0.2)
        assert thread.is_alive()  # it waits
    thread.join(10)
    assert sorted(held(store)) == ["b"]
    other.close()


def test_a_second_writer_that_waits_too_long_is_told(folder, store):
    other = make_store(folder, timeout=0.1)
    with (
        store.writing(),
        pytest.raises(ImageIndexError, match=r"index: another process has been writing for more than 0"),
    ):
        put(other, ["b"], unit_vectors(1))
    put(other, ["b"], unit_vectors(1))
    assert sorted(held(store)) == ["b"]
    other.close()


def test_two_writers_in_turn_lose_nothing(folder, store):
    def write(name):
        writer = make_store(folder)
        for number in range(15):
            put(writer, [f"{name}{number}"], unit_vectors(1, seed=number))
        writer.close()

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {f"{name}{n}": unit_vectors(1, seed=n)[0].tolist() for name in "abc" for n in range(15)}
    assert held(store) == expected


@pytest.mark.parametrize("attempt", range(3))
def test_making_it_at_once_makes_one(folder, attempt):
    """Whoever is quicker makes it, the others open it."""
    stores, barrier = [], threading.Barrier(4)

    def make():
        barrier.wait()
        stores.append(make_store(folder))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4 and len({store.meta["id"] for store in stores}) == 1
    for store in stores:
        store.close()


def test_remembered_answers_end_with_any_change(folder, store):
    """Whoever changes it: this connection or another, vectors or metadata."""
    put(store, list("abcdef"), unit_vectors(6), '{"n": 1}')
    where, other = compile_where("n = 1"), make_store(folder)
    assert store.rows(where) is store.rows(where) and len(store.rows(where)) == 6
    other.patch(exactly("a"), '{"n": 2}')
    assert store.rows(where).tolist() == [1, 2, 3, 4, 5] and store.rows(compile_where("n = 2")).tolist() == [0]
    store.delete(exactly("b"))
    assert store.rows(where).tolist() == other.rows(where).tolist() == [2, 3, 4, 5]
    with pytest.raises(KeyboardInterrupt), store.writing():
        store._db.run("DELETE FROM entries")
        raise KeyboardInterrupt
    for limit in range(20):  # more filters than are remembered
        assert len(store.rows(compile_where(f"n <= {limit}"))) == (0 if limit == 0 else 4 if limit == 1 else 5)
    assert store.rows(where).tolist() == [2, 3, 4, 5]
    other.close()


# Compaction


def test_compaction_keeps_the_living(folder, store):
    put(store, [f"{n:03}" for n in range(200)], unit_vectors(200))
    store.delete(exactly(f"{n:03}" for n in range(0, 200, 3)))
    put(store, ["001", "new"], unit_vectors(2, seed=1))
    before = held(store)
    assert compact(store) == 67 + 1
    assert held(store) == before and store.get("rows") == len(before)
    assert len(list(folder.glob("vectors-*"))) == 1
    assert compact(store) == 0 and held(store) == before
    put(store, ["more"], unit_vectors(1, seed=2))
    assert held(store) == {**before, "more": unit_vectors(1, seed=2)[0].tolist()}


@pytest.mark.parametrize("step", ["create", "write", "renumber"])
def test_compaction_killed_at_any_step_changes_nothing(folder, store, monkeypatch, step):
    put(store, list("abcd"), unit_vectors(4))
    store.delete(exactly(["b"]))
    before, calls = held(store), []

    def killed(*_, **__):
        calls.append(step)
        raise KeyboardInterrupt

    monkeypatch.setattr(Store if step == "renumber" else VectorFile, step, killed)
    with pytest.raises(KeyboardInterrupt):
        compact(store)
    monkeypatch.undo()
    again = make_store(folder)
    assert calls == [step] and held(again) == before
    assert compact(again) == 1 and held(store) == before
    assert len(list(folder.glob("vectors-*"))) == 1  # what was left is gone too
    again.close()


# Moving, choosing


def test_a_move_keeps_number_and_metadata(store):
    put(store, ["/a/x"], unit_vectors(1), '{"k": 1, "gone": 2}')
    (entry,) = store.entries()
    moved = Seen("/b/x", entry.hash, 1, 5, '{"gone": null}')
    assert store.apply(Batch(moved=[(entry.id, moved)])) == []
    (after,) = store.entries()
    assert (after.id, after.path, after.mtime_ns, after.row, after.metadata) == (entry.id, "/b/x", 5, 0, {"k": 1})


def test_a_move_of_what_is_gone_is_reported(store):
    put(store, ["/a/x"], unit_vectors(1))
    (entry,) = store.entries()
    store.delete(ALL)
    assert store.apply(Batch(moved=[(entry.id, Seen("/b/x", entry.hash, 1, 5))])) == ["/b/x"]
    assert store.count() == 0


def test_numbers_are_never_used_twice(store):
    put(store, ["a"], unit_vectors(1))
    (first,) = store.entries()
    store.delete(ALL)
    put(store, ["a"], unit_vectors(1))
    (second,) = store.entries()
    assert second.id > first.id


def test_inside_is_the_folder_and_not_its_namesakes(store):
    paths = ["/p/a", "/p/a/1", "/p/a/b/2", "/p/a.png", "/p/ab/3", "/p/A/4", "/p/a0", "/q"]
    put(store, paths, unit_vectors(len(paths)))

    def chosen(*wanted):
        return [entry.path for entry in store.entries(inside(wanted))]

    assert chosen("/p/a") == ["/p/a", "/p/a/1", "/p/a/b/2"]
    assert chosen("/p/a/", "/q") == ["/p/a", "/p/a/1", "/p/a/b/2", "/q"]
    assert chosen("/") == paths and chosen() == [] == chosen("/z")
    assert len(chosen(*(f"/no/{n}" for n in range(5000)), "/q")) == 1


def test_pages_hold_every_entry_once(store):
    put(store, [str(n) for n in range(25)], unit_vectors(25))
    for page in (1, 7, 25, 100):
        assert [entry.path for entry in store.entries(page=page)] == [str(n) for n in range(25)]


def test_what_is_acknowledged_is_synchronised(store):
    """The settings on which surviving a power cut rests."""
    assert store._db.run("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.run("PRAGMA synchronous").fetchone() == (2,)  # FULL: the log is fsynced at every commit
    assert sqlite3.sqlite_version_info >= (3, 38)
