"""Filters: every operator against every kind of value, compared with what the documentation says, in Python."""

import fnmatch
import itertools
import json

import pytest
from helpers.index_helpers import make_store, put, unit_vectors

from clip_guidance.index.where import compile_where

ABSENT = object()
VALUES = [2020, 2021, 2020.5, -3, 1, 0, True, False, "2020", "red", "Red apple", "", "b*d", [2020], {"a": 1}, ABSENT]
LITERALS = {
    "2020": 2020,
    "2020.5": 2020.5,
    "-3": -3,
    "1": 1,
    "true": True,
    "null": None,
    "red": "red",
    '"2020"': "2020",
    "'Red apple'": "Red apple",
    '""': "",
    "Z-z_9/é": "Z-z_9/é",
}
COMPARISONS = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One image for each value of ``key``, which also lies in ``deep.key`` of the next."""
    store = make_store(tmp_path_factory.mktemp("where") / "index")
    for number, value in enumerate(VALUES):
        metadata = {"n": number} if value is ABSENT else {"n": number, "key": value, "deep": {"key": value}}
        put(store, [f"/photos/{number}.png"], unit_vectors(1), json.dumps(metadata))
    yield store
    store.close()


def found(store, where) -> set[int]:
    return {entry.metadata["n"] for entry in store.entries(compile_where(where))}


def kind(value) -> type:
    return float if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value)


def equal(value, wanted) -> bool:
    if wanted is None:
        return value is ABSENT
    return kind(value) is kind(wanted) and value == wanted


def passes(value, operator: str, wanted) -> bool:
    if operator == "=":
        return equal(value, wanted)
    if operator == "!=":
        return value is not ABSENT and not equal(value, wanted)
    if operator == "~":
        return isinstance(value, str) and fnmatch.fnmatchcase(value, str(wanted))
    return kind(value) is kind(wanted) and COMPARISONS[operator](value, wanted)


def expected(*conditions) -> set[int]:
    return {n for n, value in enumerate(VALUES) if all(passes(value, *condition) for condition in conditions)}


OPERATORS = ["=", "!=", *COMPARISONS, "~"]
PAIRS = [
    (operator, literal)
    for operator, literal in itertools.product(OPERATORS, LITERALS)
    if operator in ("=", "!=") or LITERALS[literal] not in (True, None) or (LITERALS[literal] == 1 and literal == "1")
]


@pytest.mark.parametrize(("operator", "literal"), PAIRS)
def test_every_operator_with_every_value(store, operator, literal):
    wanted = expected((operator, LITERALS[literal]))
    assert found(store, f"key {operator} {literal}") == wanted
    assert found(store, f"deep.key{operator}{literal}") == wanted  # nested, and without spaces


def test_every_operator_finds_something_and_not_all():
    for operator in OPERATORS:
        sizes = [len(expected((op, LITERALS[literal]))) for op, literal in PAIRS if op == operator]
        assert any(0 < size < len(VALUES) for size in sizes), operator


def test_and_is_the_intersection(store):
    for (one, a), (other, b) in itertools.product(PAIRS[::3], PAIRS[1::4]):
        where = f"key {one} {a} AND key {other} {b}"
        assert found(store, where) == expected((one, LITERALS[a]), (other, LITERALS[b])), where


def test_in_is_the_union(store):
    names = list(LITERALS)
    for size in (1, 2, 4):
        for chosen in itertools.combinations(names, size):
            wanted = set.union(*(expected(("=", LITERALS[name])) for name in chosen))
            assert found(store, f"key in ({', '.join(chosen)})") == wanted, chosen


def test_the_path(store):
    assert found(store, "path = /photos/3.png") == {3}
    assert found(store, 'path ~ "/photos/1*"') == {1, *range(10, len(VALUES))}
    assert found(store, "path != /photos/3.png") == set(range(len(VALUES))) - {3}
    assert found(store, "path in (/photos/1.png, /photos/2.png) and n > 1") == {2}


def test_a_mapping_takes_keys_as_they_stand(store):
    assert found(store, {"key": 2020}) == expected(("=", 2020))
    assert found(store, {"key": ["red", 1]}) == expected(("=", "red")) | expected(("=", 1))
    assert found(store, {"key": True, "n": [0, 6]}) == {6}
    assert found(store, {"key": None}) == expected(("=", None))
    assert found(store, {"deep.key": 2020}) == set() == found(store, '"deep.key" = 2020')
    assert found(store, {"key": []}) == set()
    assert found(store, {}) == found(store, None) == set(range(len(VALUES)))


def test_numbers_beyond_64_bits(store):
    assert found(store, f"key < {10**30}") == {n for n, value in enumerate(VALUES) if kind(value) is float}


def test_what_was_typed_never_becomes_sql(store):
    evil = "x'); DROP TABLE entries; --"
    condition = compile_where(f'key = "{evil}"')
    assert evil in condition.parameters and evil not in condition.sql
    assert found(store, f'key = "{evil}"') == found(store, {evil: 1}) == set()
    assert store.count() == len(VALUES)
    with pytest.raises(ValueError, match=r"expected a key without quotes and backslashes, got 'a\"b'"):
        compile_where({'a"b': 1})


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", r"expected a key at character 1, it ends"),
        ("year", r"expected one of = != < <= > >= ~ in at character 5, it ends"),
        ("year >", r"expected a value at character 7, it ends"),
        ("year > = 3", r"expected a value at character 8, got '='"),
        (
            "album = red apples",
            r"expected 'and' or the end \(.* quoted\) at character 13, got 'apples'",
        ),
        ("a = 1 or b = 2", r"expected 'and' or the end .* at character 7, got 'or'"),
        ("a = 1 and", r"expected a key at character 10, it ends"),
        ("a in 1", r"expected \( after in at character 6, got '1'"),
        ("a in (1 2)", r"expected , or \) at character 9, got '2'"),
        ("a in ()", r"expected a value at character 7, got '\)'"),
        ('a = "b', r"a quote is opened and not closed at character 5: a = \"b"),
        ("a ! b", r"cannot read '!' at character 3"),
        ("a < true", r"true can be compared with = and != only, got <"),
        ("a..b = 1", r"expected a key without quotes and backslashes, got ''"),
        ({"a": object()}, r"expected a text, number, truth value or None, got <object"),
    ],
)
def test_errors_say_where(where, message):
    with pytest.raises(ValueError, match=f"^where: {message}"):
        compile_where(where)
