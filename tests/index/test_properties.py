"""Whatever is given: filters, metadata and addresses are right by another computation, or refused by name."""

import contextlib
import copy
import fnmatch
import json
import math
import sqlite3

import hypothesis.strategies as st
import pytest
from hypothesis import given

from clip_guidance.index.address import public_address, without_secrets
from clip_guidance.index.metadata import patch
from clip_guidance.index.where import compile_where

KEYS = st.sampled_from(["a", "b c", "größe", "画", "x.y", "A"])
TEXTS = st.text("ab É画*?", max_size=4)
NUMBERS = st.integers(-5, 5) | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = NUMBERS | TEXTS | st.booleans() | st.just([1]) | st.dictionaries(KEYS, NUMBERS | TEXTS, max_size=2)
ABSENT = object()


def look_up(metadata, names):
    for name in names:
        metadata = metadata.get(name, ABSENT) if isinstance(metadata, dict) else ABSENT
    return metadata


def kind(value):
    return float if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value)


def number(value):
    """As SQLite holds it: of 64 bits or a float."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63 else value


def passes(value, operator, wanted) -> bool:
    """What the documentation of the filters says."""
    if operator == "!=":
        return value is not ABSENT and not passes(value, "=", wanted)
    if wanted is None:
        return value is ABSENT
    if operator == "~":
        return isinstance(value, str) and fnmatch.fnmatchcase(value, wanted if isinstance(wanted, str) else str(wanted))
    if kind(value) is not kind(wanted):
        return False
    value, wanted = number(value), number(wanted)
    compare = {"=": "__eq__", "<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}[operator]
    return (getattr(float(value) if isinstance(wanted, float) else value, compare)(wanted)) is True


@st.composite
def conditions(draw):
    """A condition as it is typed; its key, operator and value."""
    names = draw(st.tuples(KEYS.filter(lambda key: "." not in key and " " not in key)) | st.tuples(KEYS))
    wanted = draw(NUMBERS | TEXTS | st.booleans() | st.none())
    operators = ["=", "!="] if wanted is None or isinstance(wanted, bool) else ["=", "!=", "<", "<=", ">", ">="]
    operator = draw(st.sampled_from([*operators, *(["~"] if isinstance(wanted, str) else [])]))
    literal = f'"{wanted}"' if isinstance(wanted, str) else json.dumps(wanted)
    return f'"{names[0]}" {operator} {literal}', names, operator, wanted


def met(where, metadata) -> bool:
    condition = compile_where(where)
    with contextlib.closing(sqlite3.connect(":memory:")) as file:
        file.execute("CREATE TABLE entries (path, metadata)")
        file.execute("INSERT INTO entries VALUES ('/a', json_patch('{}', ?))", (patch(metadata),))
        ((count,),) = file.execute(f"SELECT count(*) FROM entries WHERE {condition.sql}", condition.parameters)
    return bool(count)


@given(st.dictionaries(KEYS, VALUES, max_size=4), st.lists(conditions(), min_size=1, max_size=3))
def test_a_filter_finds_what_its_grammar_says(metadata, asked):
    where = " and ".join(text for text, *_ in asked)
    assert met(where, metadata) == all(passes(look_up(metadata, key), op, value) for _, key, op, value in asked), where


SCALARS = NUMBERS | TEXTS | st.booleans() | st.none()


@given(st.dictionaries(KEYS, VALUES, max_size=4), KEYS, st.lists(SCALARS, max_size=3))
def test_a_mapping_finds_what_it_says(metadata, key, wanted):
    found = look_up(metadata, (key,))
    assert met({key: wanted}, metadata) == any(passes(found, "=", value) for value in wanted)


@given(st.text(max_size=40) | st.text("ab.=<>!~(),'\" and in1\0", max_size=40))
def test_any_text_is_a_filter_or_refused(text):
    try:
        condition = compile_where(text)
    except ValueError as error:
        assert str(error).startswith("where: ") and len(str(error)) <= 300
        return
    assert condition.sql.count("?") == len(condition.parameters)
    met(text, {"a": 1})


HUGE = "9" * 400


@pytest.mark.parametrize("where", [f"a = {HUGE}", f"a < -{HUGE}", f"a = {'[' * 20000}", "a = \udce9", 7, ["a"]])
def test_what_no_number_and_no_text_can_be(where):
    try:
        assert not met(where, {"a": 1})
    except ValueError as error:
        assert str(error).startswith("where: ") and len(str(error)) <= 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def merged(target, change):
    """RFC 7396, section 2."""
    if not isinstance(change, dict):
        return change
    target = target if isinstance(target, dict) else {}
    for name, value in change.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = merged(target.get(name), value)
    return target


@given(st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), min_size=1, max_size=3))
def test_metadata_is_merged_as_the_rfc_says(changes):
    text, expected = "{}", {}
    with contextlib.closing(sqlite3.connect(":memory:")) as file:
        for change in changes:
            ((text,),) = file.execute("SELECT json_patch(?, ?)", (text, patch(change)))
            expected = merged(copy.deepcopy(expected), change)
    assert json.loads(text) == expected


def nested(depth: int, kind):
    value = 1
    for _ in range(depth):
        value = kind(value)
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "Out of range float"),
        ({1, 2}, "Object of type set"),
        ("caf\udce9", "surrogates not allowed"),
        (nested(200, lambda value: {"a": value}), "at most 100 lists and objects within each other"),
        (nested(200, lambda value: [value]), "at most 100 lists and objects within each other"),
        (nested(100_000, lambda value: [value]), "(recursion|Stack overflow)"),  # the words of Python 3.11 and 3.14
    ],
)
def test_what_is_no_json_is_refused(value, message):
    with pytest.raises(ValueError, match=rf"^metadata: expected .*{message}") as caught:
        patch({"key": value})
    assert len(str(caught.value)) <= 300


SECRETS = st.text("aZ09@:/?#%[]é \\", min_size=4, max_size=12).filter(lambda text: len(set(text)) > 3)


@given(st.sampled_from(["", "root"]), SECRETS, st.sampled_from(["http", "https"]))
def test_a_password_is_shown_nowhere(user, password, scheme):
    address = f"{scheme}://{user}:{password}@milvus.example:19530/db"
    assert public_address(address) == f"{scheme}://milvus.example:19530/db"
    said = without_secrets(f"cannot reach {address}, user {user}:{password}, password {password}", address)
    assert password not in said
    assert public_address("./photos@home.index") == "./photos@home.index"
