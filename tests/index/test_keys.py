"""Indexes on the keys that filters ask for: the same answers, sooner, and nobody waits for them."""

import contextlib
import json
import sqlite3
import time

import numpy as np
import pytest
from helpers.index_helpers import make_store, put, unit_vectors

from clip_guidance.index import catalogue
from clip_guidance.index.keys import index_name
from clip_guidance.index.schema import FILE
from clip_guidance.index.store import Store
from clip_guidance.index.vectors import ImageIndexError
from clip_guidance.index.where import compile_where

COUNT = 40
FILTERS = [
    "year >= 2005", "year = 2010", "year != 2010", "year < 2003 and album = a", "album in (a, b)", 'album ~ "[ab]*"',
    "album != c and year > 2001", "album = null", "album != null", "flag = true", "flag != true", 'year = "2010"',
    "camera.model = x and year >= 2015", 'path ~ "*7.png" and year > 2000', """ "it's" > 3 """,
]  # fmt: skip


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "LEAST", 1)
    store = make_store(tmp_path / "index")
    for n in range(COUNT):
        metadata = {"year": 2000 + n % 20, "it's": n % 7, "flag": n % 3 == 0, "camera": {"model": "xyz"[n % 3]}}
        metadata |= {} if n % 5 == 0 else {"album": "abc"[n % 3]}
        put(store, [f"/photos/{n}.png"], unit_vectors(1, seed=n), json.dumps(metadata))
    yield store
    store.close()


def paths(store, where):
    return {hit.path for hit in store.search(unit_vectors(1), COUNT, compile_where(where))[0]}


def plan(store, where):
    condition = compile_where(where)
    sql = f"EXPLAIN QUERY PLAN SELECT row, checksum FROM entries WHERE {condition.sql}"
    return " ".join(row[-1] for row in store._db.fetch(sql, condition.parameters))


def test_answers_are_those_without_indexes_also_after_changes(store, monkeypatch):
    monkeypatch.setattr(catalogue, "MOST", 0)
    expected = [paths(store, where) for where in FILTERS]
    assert not store._db.key_indexes() and 0 < min(map(len, expected[:5])) < max(map(len, expected[:5])) < COUNT
    monkeypatch.setattr(catalogue, "MOST", 16)
    assert [paths(store, where) for where in FILTERS] == expected
    assert len(store._db.key_indexes()) == 6  # that on the path too
    store.patch(compile_where("year = 2010"), '{"year": 1999, "album": "new"}')
    store.delete(compile_where("album = b"))
    put(store, ["/photos/new.png"], unit_vectors(1), '{"album": "b"}')
    assert paths(store, "album in (b, new)") == {"/photos/10.png", "/photos/30.png", "/photos/new.png"}
    assert paths(store, "year = 2010") == set()


@pytest.mark.parametrize("where", ["year >= 2005", "album in (a, b)", "camera.model = x", """ "it's" > 3 """])
def test_an_index_is_made_once_and_used(where, store):
    (names,) = set(compile_where(where).keys)
    paths(store, where)
    assert store._db.key_indexes() == {index_name(names)} and index_name(names) in plan(store, where)
    again = Store(store.folder, None)
    assert paths(again, where) == paths(store, where) and again._db.key_indexes() == {index_name(names)}
    again.close()


def test_no_more_are_made_than_writing_can_bear(store, monkeypatch):
    monkeypatch.setattr(catalogue, "MOST", 2)
    for key in ("year", "album", "flag"):
        paths(store, f"{key} != 1")
    assert store._db.key_indexes() == {index_name(("year",)), index_name(("album",))}


def test_small_indexes_and_those_that_another_process_writes_are_read_without(store, monkeypatch):
    expected = paths(store, "year >= 2005")
    store._db.run(f'DROP INDEX "{index_name(("year",))}"')
    writer = sqlite3.connect(store.folder / FILE, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    assert paths(store, "year >= 2005 and year > 0") == expected and time.monotonic() - start < 5
    writer.execute("ROLLBACK")
    writer.close()
    monkeypatch.setattr(catalogue, "LEAST", COUNT + 1)
    assert paths(store, "year >= 2005 and year > 1") == expected and not store._db.key_indexes()
    monkeypatch.setattr(catalogue, "LEAST", COUNT)
    assert paths(store, "year >= 2005 and year > 2") == expected and len(store._db.key_indexes()) == 1
    assert store._db.fetch("PRAGMA busy_timeout") == [(60_000,)]


KEY = '"key-0123456789abcdef"'
EXPRESSIONS = ["json_type(metadata, '$.\"{}\"')", "json_extract(metadata, '$.\"{}\"')"]


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        (KEY, ["hash"]),
        ("other", [*(each.format("a") for each in EXPRESSIONS), "row", "checksum"]),
        (KEY, [EXPRESSIONS[0].format("a"), EXPRESSIONS[1].format("b"), "row", "checksum"]),
    ],
)
def test_other_indexes_are_refused(name, columns, store):
    store.close()
    with contextlib.closing(sqlite3.connect(store.folder / FILE)) as file, file:
        file.execute(f"CREATE INDEX {name} ON entries ({', '.join(columns)})")
    with pytest.raises(ImageIndexError, match="is damaged: holds the index .* which is not of this kind of file"):
        Store(store.folder, None)


def test_vectors_are_found_by_the_rows_of_an_index(store):
    vectors = np.concatenate([unit_vectors(1, seed=n) for n in range(COUNT)])
    found = store.search(vectors, 1, compile_where("year >= 2000"))
    assert [hits[0].path for hits in found] == [f"/photos/{n}.png" for n in range(COUNT)]
