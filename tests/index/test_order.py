"""The order of a key's index: whatever is asked of it, the answer is that of a plain reading of all images."""

import contextlib
import json
import random
import sqlite3

import numpy as np
import pytest
from helpers.index_helpers import make_store, unit_vectors

from clip_guidance.index import catalogue, rows
from clip_guidance.index.entries import Batch, Seen
from clip_guidance.index.keys import PATH, index_name, statement
from clip_guidance.index.order import Order
from clip_guidance.index.schema import FILE
from clip_guidance.index.store import Store
from clip_guidance.index.vectors import ImageIndexError
from clip_guidance.index.where import compile_where

NUMBERS = [-2, 0, 1, 2, -0.5, 1.0, 1.5, 2**63 - 1, 2**63, -(2**70), 1e300]
TEXTS = ["", "1", "a", "ab", "b", "é", "画", "true", "[1]"]
# As they stand in a file: others may have written it, so that null and more than a double holds are there too.
OTHERS = ["true", "false", "null", "[1]", "[]", '{"d":1}', "1e999", "-1e999", "-0.0"]
WRITTEN = [json.dumps(value, ensure_ascii=False) for value in [*NUMBERS, *TEXTS]] + OTHERS
KEYS = [("a",), ("b",), ("c", "d"), PATH]
PATTERNS = ['"*"', '"?"', '"*[1a]*"', '"/*"']
SIGNS = ["=", "!=", "<", "<=", ">", ">="]


def images(rng: random.Random) -> list[str]:
    """Metadata of up to 24 images."""
    members = ['"a":{}', '"a":{}', '"b":{}', '"c":{{"d":{}}}', '"c":{}']
    chosen = [{each[1]: each.format(rng.choice(WRITTEN)) for each in rng.choices(members, k=3)} for _ in range(24)]
    return [f"{{{','.join(each.values())}}}" for each in chosen[: rng.choice([0, 1, 12, 24, 24, 24])]]


def condition(rng: random.Random) -> str:
    key, kind = rng.choice(["a", "a", "b", "c.d", "path"]), rng.random()
    texts = [f'"{value}"' for value in [*TEXTS, *(("/1.png", "/5.png") if key == "path" else ())]]
    values = texts if key == "path" else [*texts, *map(json.dumps, NUMBERS)]
    plain = values if key == "path" else [*values, *["true", "false", "null"] * 4]
    if kind < 0.5:
        return f"{key} {rng.choice(SIGNS)} {rng.choice(values)}"
    if kind < 0.75:
        return f"{key} {rng.choice(['=', '!=', '!='])} {rng.choice(plain)}"
    if kind < 0.9:
        return f"{key} in ({', '.join(rng.choices(plain, k=rng.randint(1, 4)))})"
    return f"{key} ~ {rng.choice(PATTERNS)}"


def make_file(metadata) -> sqlite3.Connection:
    """A catalogue in memory with an index on each key; its rows have gaps and are in no order."""
    file = sqlite3.connect(":memory:")
    file.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, path UNIQUE, row UNIQUE, metadata, checksum)")
    numbered = [(f"/{n}.png", n * 7 % 24 * 2, text) for n, text in enumerate(metadata)]
    file.executemany("INSERT INTO entries (path, row, metadata) VALUES (?, ?, ?)", numbered)
    for names in KEYS:
        file.execute(statement(names))
    return file


@pytest.mark.parametrize("seed", range(40))
def test_answers_are_those_of_reading_all(seed, monkeypatch):
    """Read for the first time and with what is remembered of other filters; :mod:`test_properties` compares the SQL."""
    rng = random.Random(seed)
    for name, values in (("DIRECT", (1000, 8)), ("LOOKUP", (50, 3)), ("VALUES", (50, 2))):
        monkeypatch.setattr(rows, name, rng.choice(values))
    filters = [" and ".join(condition(rng) for _ in range(rng.randint(1, 4))) for _ in range(8)]
    with contextlib.closing(make_file(images(rng))) as file:
        memory, indexes = rows.Memory(), {index_name(names) for names in KEYS}
        reader = rows.Rows(lambda sql, parameters: file.execute(sql, parameters).fetchall(), indexes, 50, memory)
        for where in [*filters, *reversed(filters)]:
            asked = compile_where(where)
            sql = f"SELECT row FROM entries NOT INDEXED WHERE {asked.sql} ORDER BY row"
            assert reader.meeting(asked).tolist() == [row for (row,) in file.execute(sql, asked.parameters)], where


COUNT = 60


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Of 60 images the number ``n``, ``m`` in the opposite order, and at two thirds of them ``album``."""
    monkeypatch.setattr(catalogue, "LEAST", 1)
    store = make_store(tmp_path / "index")
    metadata = [{"n": n, "m": -n} | ({"album": "abc"[n % 3]} if n % 3 else {}) for n in range(COUNT)]
    seen = [Seen(f"/{n}.png", str(n), 1, 1, json.dumps(each)) for n, each in enumerate(metadata)]
    store.apply(Batch(seen, unit_vectors(COUNT)))
    for key in ("n", "m", "album"):
        store.index_keys(compile_where(f"{key} = 1"))
    yield store
    store.close()


def read(store, where):
    return store.rows(compile_where(where)).tolist()


def test_another_wide_filter_reads_no_rows(store):
    """What it asks of SQLite is found by going down an index once."""
    read(store, "n >= 10 and m < 0 and album != b")
    said = []
    store._db._file.set_trace_callback(said.append)
    assert read(store, "n >= 20 and m < -1 and album != c") == [n for n in range(20, COUNT) if n % 3 == 1]
    assert read(store, "n in (1, 5, 7) and n < 7.5 and m != -1") == [5, 7]
    assert read(store, "album = null") == list(range(0, COUNT, 3))
    store._db._file.set_trace_callback(None)
    asked = [sql for sql in said if "entries" in sql]
    assert len(asked) > 10 and not [sql for sql in asked if "group_concat" in sql]
    for sql in asked:
        plan = " ".join(row[-1] for row in store._db.fetch(f"EXPLAIN QUERY PLAN {sql}"))
        assert plan.startswith("SEARCH entries USING INDEX key-") and "TEMP" not in plan, plan


def test_narrow_filters_read_no_order(store, monkeypatch):
    monkeypatch.setattr(rows, "LOOKUP", 10)
    assert read(store, "n < 7") == list(range(7)) and read(store, "n < 5 and album != b") == [2]
    assert not store._memory.orders
    every = ", ".join(map(str, range(COUNT)))
    assert read(store, f"n in ({every})") == list(range(COUNT)) and not store._memory.orders  # too many to ask for
    assert read(store, "n < 9") == list(range(9)) and set(store._memory.orders) == {("n",)}


def test_what_is_remembered_and_what_is_narrow_leave_few_to_look_up(store, monkeypatch):
    monkeypatch.setattr(rows, "LOOKUP", 2)
    assert read(store, "n < 50") == list(range(50))
    expected = [n for n in range(41, 51) if n % 3 == 2]
    assert read(store, "n < 50.5 and m < -40 and album != b") == expected  # m finds them backwards
    assert set(store._memory.orders) == {("n",)}


def test_where_a_key_has_no_index_all_is_read_once(store, monkeypatch):
    asked = []
    monkeypatch.setattr(rows.Rows, "_read", lambda *given, _old=rows.Rows._read: asked.append(given[1]) or _old(*given))
    condition = compile_where("n >= 10 and other = null and another != x and m != 5")
    assert store.rows(condition).tolist() == [] and asked == [condition]


def test_a_pattern_is_remembered_apart_from_comparisons(store, monkeypatch):
    asked = []
    monkeypatch.setattr(rows.Rows, "_read", lambda *given, _old=rows.Rows._read: asked.append(given[1]) or _old(*given))
    for letter in "xyz":
        assert read(store, f'album ~ "*[bc]*" and album != {letter}') == [n for n in range(COUNT) if n % 3]
    assert [condition.terms == () for condition in asked] == [True, False, False, False]


def test_memory_is_bounded_and_forgets_what_was_not_asked_for_longest(store, monkeypatch):
    monkeypatch.setattr(rows, "ANSWERS", 3)
    monkeypatch.setattr(rows, "ORDERS", 2)
    for where in ("n > 1", "m < -1", "n > 2", "album != x"):
        read(store, where)
    assert list(store._memory.orders) == [("n",), ("album",)] and len(store._memory.answers) == 3
    read(store, "n > 3")
    read(store, "m < -2")
    assert list(store._memory.orders) == [("n",), ("m",)] and len(store._memory.answers) == 3
    read(store, "m < -3")
    assert list(store._memory.orders) == [("n",), ("m",)]


def test_a_change_between_two_questions_is_not_seen(store, monkeypatch):
    """The order and the places in it are of one state, also outside of a search."""
    assert read(store, "n >= 10") == list(range(10, COUNT))
    other, seek = Store(store.folder, None), Order._seek

    def change_first(*given):
        monkeypatch.setattr(Order, "_seek", seek)
        other.patch(compile_where("n = 21"), '{"n": 15}')
        return seek(*given)

    monkeypatch.setattr(Order, "_seek", change_first)
    assert read(store, "n > 20") == list(range(21, COUNT)) and not store._db.in_transaction
    assert read(store, "n > 20") == list(range(22, COUNT))
    other.close()


def change(folder, sql):
    with contextlib.closing(sqlite3.connect(folder / FILE)) as file, file:
        file.execute(sql)


@pytest.mark.parametrize("value", ["2.5", "-1", "100"])
def test_damage_of_an_image_that_does_not_pass_is_no_matter(value, store):
    """As without the order; row 100 is none that the catalogue knows."""
    change(store.folder, f"UPDATE entries SET row = {value} WHERE row = 3")
    assert read(store, "n > 20") == list(range(21, COUNT)) and not store._memory.orders
    if value != "100":
        with pytest.raises(ImageIndexError, match="is damaged: the row of an image is no whole number$"):
            read(store, "n < 20")


def test_a_row_beyond_all_memory_is_a_row(store):
    change(store.folder, f"UPDATE entries SET row = {1 << 45} WHERE row = 3")
    assert read(store, "n < 30 and m != -1") == [0, 2, *range(4, 30), 1 << 45]


def test_rows_that_are_not_those_of_the_index_are_refused(store):
    given = np.arange(COUNT)
    condition = compile_where("n > 20")
    assert Order(store._fetch, ("n",), given).meeting(condition.terms).tolist() == list(range(21, COUNT))
    with pytest.raises(ValueError, match="^the index on a key is not that of the images$"):
        Order(store._fetch, ("n",), given[::-1])
    with pytest.raises(ValueError, match="^the index on a key is not that of the images$"):
        Order(store._fetch, ("n",), given[given != 21]).meeting(condition.terms)
