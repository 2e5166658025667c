"""Rows of what meets a condition: the same ones, however they are read, and damage is told."""

import json
import sqlite3

import numpy as np
import pytest
from helpers.index_helpers import make_store, put, unit_vectors

from clip_guidance.index import catalogue, rows
from clip_guidance.index.checksums import checksums
from clip_guidance.index.nearest import nearest
from clip_guidance.index.rows import whole_numbers
from clip_guidance.index.schema import FILE
from clip_guidance.index.store import Store
from clip_guidance.index.vectors import ImageIndexError
from clip_guidance.index.where import compile_where

COUNT = 60
VALUES = [0, 1, 2.5, -3, "1", "red", "b*d", True, False, None, [1], {"a": 1}]  # None: the key is missing
SINGLE = ["v = 1", "v != 1", "v < 2", 'v = "1"', "v ~ *d", "v = true", "v != true", "v = null", "v in (1, red, null)"]
OTHERS = [
    "n >= 30",
    "n != 7",
    "even = true",
    "even = null",
    "n < 3",
    "n > 100",
    'path ~ "*[0-4].png"',
    "path != /7.png",
]


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Of 60 images, the twelve values of ``v`` five times over, the number, and at every second image ``even``."""
    monkeypatch.setattr(catalogue, "LEAST", 1)
    store = make_store(tmp_path / "index")
    for n in range(COUNT):
        metadata = {"n": n, "v": VALUES[n % len(VALUES)], "even": None if n % 2 else True}
        put(store, [f"/{n}.png"], unit_vectors(1, seed=n), json.dumps(metadata))
    yield store
    store.close()


@pytest.mark.parametrize(("lookup", "page"), [(50, 1000), (1, 1000), (50, 7), (1, 7), (50, 60), (50, 59)])
def test_however_rows_are_read_they_are_the_same(lookup, page, store, monkeypatch):
    """Two keys in one: by the narrow one (a lookup costs nothing), or each by itself (it costs a lot); in pages."""
    filters = [
        *SINGLE,
        *(f"{one} and {other}" for one in SINGLE for other in OTHERS),
        "v != 1 and n > 5 and even = true",
    ]
    conditions = [compile_where(where) for where in filters]
    expected = [sorted(entry.row for entry in store.entries(condition)) for condition in conditions]
    assert min(map(len, expected)) == 0 and max(map(len, expected)) > COUNT / 2
    for condition in conditions:
        store.index_keys(condition)
    assert len(store._db.key_indexes()) == 4
    monkeypatch.setattr(rows, "LOOKUP", lookup)
    monkeypatch.setattr(rows, "PAGE", page)
    for _ in range(2):  # read, and remembered
        assert [store.rows(condition).tolist() for condition in conditions] == expected
    store.delete(compile_where("n in (0, 20, 40)"))
    expected = [[row for row in found if row not in (0, 20, 40)] for found in expected]
    assert [store.rows(condition).tolist() for condition in conditions] == expected


def test_wide_filters_read_indexes_alone(store):
    """The metadata of the images, which is what takes the time, are not asked for."""
    condition = compile_where("v != 1 and n >= 10 and path != /3.png")
    store.index_keys(condition)
    said = []
    store._db._file.set_trace_callback(said.append)
    assert len(store.rows(condition)) == COUNT - 10 - 4 - 4  # without those of 1, and those without the key
    store._db._file.set_trace_callback(None)
    reads = [sql for sql in said if "FROM entries INDEXED BY" in sql and "LIMIT" not in sql]
    assert len(reads) == 3 and not [sql for sql in said if "json_each" in sql]
    for sql in reads:
        plan = " ".join(row[-1] for row in store._db.fetch(f"EXPLAIN QUERY PLAN {sql}"))
        assert plan.startswith(("SCAN entries USING INDEX key-", "SEARCH entries USING", "SCAN entries USING COV")), (
            plan
        )


def test_parts_are_remembered_for_other_filters(store, monkeypatch):
    for where in ("n >= 10 and v != 1", "n >= 10 and v != red", "n >= 10"):
        store.index_keys(compile_where(where))
    asked = []
    monkeypatch.setattr(rows.Rows, "_read", lambda *given, _old=rows.Rows._read: asked.append(given) or _old(*given))
    store.rows(compile_where("n >= 10 and v != 1"))
    assert len(asked) == 2
    store.rows(compile_where("n >= 10 and v != red"))
    assert len(asked) == 3
    store.rows(compile_where("n >= 10"))
    assert len(asked) == 3


def test_another_process_changes_what_a_wide_filter_finds(store):
    where = compile_where("n >= 10 and v != 1")
    store.index_keys(where)
    before, other = store.rows(where), Store(store.folder, None)
    with store.reading():
        assert (store.rows(where) == before).all()
        other.patch(compile_where("n = 30"), '{"v": 1}')
        other.delete(compile_where("n = 32"))
        put(other, ["/new.png"], unit_vectors(1), '{"n": 99, "v": "new"}')
        assert (store.rows(where) == before).all()  # its state is that of its beginning
    assert {30, 32} <= set(before.tolist())
    assert set(store.rows(where).tolist()) == set(before.tolist()) - {30, 32} | {COUNT}
    other.close()


def test_checksums_are_asked_for_once(store, monkeypatch):
    """Of rows close to each other and of single ones; afterwards of new ones alone."""
    asked, read = [], store._read_checksums
    monkeypatch.setattr(store, "_read_checksums", lambda rows: asked.append(rows.tolist()) or read(rows))
    with store.reading() as vectors:
        for chosen in (np.array([3, 4, 6]), np.array([0, 30, 59]), np.arange(COUNT)):
            assert read(chosen).tolist() == checksums(vectors[chosen]).tolist()
        assert len(store.sound(vectors, compile_where("n in (3, 40)"))) == 2
    query = unit_vectors(1)
    for where in ("n < 5", "n < 6", None):
        store.search(query, 1, compile_where(where))
    put(store, ["/new.png"], unit_vectors(1), "{}")
    store.search(query, 1)
    rest = [n for n in range(6, COUNT) if n != 40]
    assert [part for part in asked if part] == [[3, 40], [0, 1, 2, 4], [5], rest, [COUNT]]


def change(folder, statement):
    with sqlite3.connect(folder / FILE) as file:
        file.execute(statement)
    file.close()


@pytest.mark.parametrize("value", ["'one'", "x'3939'", "x'31'", "-1", "2.5", "1e300"])
@pytest.mark.parametrize("where", [None, "n >= 0", "n >= 0 and v != 7", "n = 3"])
def test_rows_that_are_no_numbers_are_damage(value, where, store):
    """Bytes that are the digits of a row too: SQLite joins them as if they were a text."""
    store.index_keys(condition := compile_where(where))
    change(store.folder, f"UPDATE entries SET row = {value} WHERE row = 3")
    with pytest.raises(ImageIndexError, match=r"index\.sqlite: is damaged: the row of an image is no whole number$"):
        store.search(unit_vectors(1), 1, condition)


@pytest.mark.parametrize("value", ["'one'", "x'3939'", "2.5"])
def test_checksums_that_are_no_numbers_are_damage(value, store):
    change(store.folder, f"UPDATE entries SET checksum = {value} WHERE row = 3")
    if value == "x'3939'":  # of bytes that are digits the vector has not this checksum
        with pytest.warns(UserWarning, match="the vectors of 1 images"):
            store.search(unit_vectors(1), 1)
    else:
        with pytest.raises(ImageIndexError, match=r"is damaged: the \w+ of an? \w+ is no whole number$"):
            store.search(unit_vectors(1), 1)


def test_texts_of_whole_numbers():
    assert whole_numbers(None).tolist() == [] and whole_numbers("7").tolist() == [7]
    assert whole_numbers(f"{2**40},0,12").tolist() == [2**40, 0, 12]
    for text in ("", "1,", ",1", "1,,2", "1.5", "1e3", "-1", "one", "٣", "1\0"):
        with pytest.raises(ValueError, match="the row of an image is no whole number"):
            whole_numbers(text)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("block", [3, 16, 1000])
def test_vectors_between_those_that_are_searched_may_be_anything(dtype, block):
    vectors = unit_vectors(100).astype(dtype)
    vectors[1::2] = np.inf
    vectors[3::4] = np.nan
    query = unit_vectors(2, seed=1)
    for queries in (query[:1], query):
        for chosen in (np.arange(0, 100, 2), np.array([0, 2, 4, 90, 92])):
            found = nearest(vectors, chosen, queries, 5, block)
            order = np.argsort(-(queries @ vectors[chosen].astype(np.float32).T), axis=1)[:, :5]
            np.testing.assert_array_equal(found.rows, chosen[order])
