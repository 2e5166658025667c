"""Metadata filters: ``year >= 2020 and album in (cats, "guinea pigs") and path ~ "*/2024/*"``.

    filter    = condition, {"and", condition}
    condition = key, ("=" | "!=" | "<" | "<=" | ">" | ">=" | "~"), value | key, "in", "(", value, {",", value}, ")"

A bare key with dots is nested (``camera.model``), a quoted key is taken as it stands; ``path`` is the image's own.
Values are numbers, ``true``, ``false``, ``null``, bare words or quoted texts. A number is compared with numbers only, a
text with texts only (character by character, so dates written 2024-05-01 are in order), and an image without the key
matches nothing but ``key = null``. ``~`` matches a text with the wildcards ``*``, ``?`` and ``[a-z]``.

The result is SQL with parameters: nothing that was typed becomes part of a statement.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TOKEN = re.compile(
    r"""\s*(?: (?P<text> "[^"]*" | '[^']*' ) | (?P<operator> <= | >= | != | == | = | < | > | ~ )
        | (?P<mark> [(),] ) | (?P<word> [^\s"'(),=<>!~]+ ) )""",
    re.VERBOSE,
)
_SQL = {"=": "=", "==": "=", "<": "<", "<=": "<=", ">": ">", ">=": ">=", "~": "GLOB"}


@dataclass(frozen=True)
class Condition:
    """Hold a part of an SQL statement over the table of entries, and the values of its question marks."""

    sql: str
    parameters: tuple[Any, ...]


ALL = Condition("1", ())


def both(one: Condition, other: Condition) -> Condition:
    """Join two conditions: images must meet both."""
    return _all([one, other])


def compile_where(where: str | Mapping[str, Any] | None) -> Condition:
    """Translate a filter.

    Args:
        where: A text as above; or keys, as they stand, with the value or list of values that each must have.

    Raises:
        ValueError: The filter cannot be read; the message says where.
    """
    if where is None:
        return ALL
    if isinstance(where, str):
        return _Parser(where).filter()
    conditions = []
    for key, value in where.items():
        values = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
        conditions.append(_any(_compare(_Key((key,)), "=", one) for one in values))
    return _all(conditions)


@dataclass(frozen=True)
class _Key:
    """Locate a value: the names from the outermost to the innermost."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in self.names:
            if not name or '"' in name or "\\" in name:  # SQLite has no way to quote these
                raise ValueError(f"where: expected a key without quotes and backslashes, got {name!r}")

    @property
    def is_path(self) -> bool:
        return self.names == ("path",)

    @property
    def json_path(self) -> str:
        return "$" + "".join(f'."{name}"' for name in self.names)


def _compare(key: _Key, operator: str, value: Any) -> Condition:
    """Translate one comparison.

    ``json_type`` decides first: SQLite itself would call every number smaller than every text.
    """
    if operator == "!=":
        equal = _compare(key, "=", value)
        has = Condition("1", ()) if key.is_path else Condition("json_type(metadata, ?) IS NOT NULL", (key.json_path,))
        return _all([has, Condition(f"NOT ({equal.sql})", equal.parameters)])
    if key.is_path:
        return Condition(f"path {_SQL[operator]} ?", (_text(value),))
    kind = ("json_type(metadata, ?)", key.json_path)
    if value is None or isinstance(value, bool):
        if operator not in ("=", "=="):
            raise ValueError(f"where: {json.dumps(value)} can be compared with = and != only, got {operator}")
        if value is None:
            return Condition(f"{kind[0]} IS NULL", kind[1:])
        return Condition(f"ifnull({kind[0]} = ?, 0)", (*kind[1:], json.dumps(value)))
    if isinstance(value, (int, float)) and operator != "~":
        kinds, value = "'integer', 'real'", float(value) if abs(value) >= 2**63 else value
    elif isinstance(value, (str, int, float)):
        kinds, value = "'text'", _text(value)
    else:
        raise ValueError(f"where: expected a text, number, truth value or None, got {value!r}")
    sql = f"ifnull({kind[0]} IN ({kinds}) AND json_extract(metadata, ?) {_SQL[operator]} ?, 0)"
    return Condition(sql, (*kind[1:], key.json_path, value))


def _all(conditions: Sequence[Condition]) -> Condition:
    sql = " AND ".join(f"({condition.sql})" for condition in conditions) or "1"
    return Condition(sql, tuple(value for condition in conditions for value in condition.parameters))


def _any(conditions: Any) -> Condition:
    conditions = list(conditions)
    sql = " OR ".join(f"({condition.sql})" for condition in conditions) or "0"
    return Condition(sql, tuple(value for condition in conditions for value in condition.parameters))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class _Token:
    kind: str  # text (was quoted), operator, mark, word, end
    text: str
    position: int


def _tokens(source: str) -> list[_Token]:
    tokens, position = [], 0
    while match := _TOKEN.match(source, position):
        kind = str(match.lastgroup)
        text = match[kind]
        tokens.append(_Token(kind, text[1:-1] if kind == "text" else text, match.start(kind)))
        position = match.end()
    if source[position:].strip():
        at = len(source) - len(source[position:].lstrip())
        problem = "a quote is opened and not closed" if source[at] in "\"'" else f"cannot read {source[at]!r}"
        raise ValueError(f"where: {problem} at character {at + 1}: {source}")
    return [*tokens, _Token("end", "", len(source))]


class _Parser:
    """Parse the grammar above by recursive descent, one method per rule."""

    def __init__(self, source: str) -> None:
        self.source, self.tokens = source, _tokens(source)

    def filter(self) -> Condition:
        conditions = [self._condition()]
        while self._next.kind != "end":
            self._take("'and' or the end (a text with spaces is quoted)", self._is_word("and"))
            conditions.append(self._condition())
        return _all(conditions)

    def _condition(self) -> Condition:
        key = self._key()
        if self._is_word("in"):
            self.tokens.pop(0)
            return self._in(key)
        operator = self._take("one of = != < <= > >= ~ in", self._next.kind == "operator").text
        return _compare(key, operator, self._value())

    def _in(self, key: _Key) -> Condition:
        self._take("( after in", self._is_mark("("))
        values = [self._value()]
        while self._is_mark(","):
            self.tokens.pop(0)
            values.append(self._value())
        self._take(", or )", self._is_mark(")"))
        return _any(_compare(key, "=", value) for value in values)

    def _key(self) -> _Key:
        token = self._take("a key", self._next.kind in ("word", "text"))
        return _Key((token.text,) if token.kind == "text" else tuple(token.text.split(".")))

    def _value(self) -> Any:
        token = self._take("a value", self._next.kind in ("word", "text"))
        if token.kind == "text":
            return token.text
        try:
            value = json.loads(token.text, parse_constant=str)  # NaN and Infinity are words
        except ValueError:
            return token.text
        return value if value is None or isinstance(value, (bool, int, float)) else token.text

    @property
    def _next(self) -> _Token:
        return self.tokens[0]

    def _is_word(self, word: str) -> bool:
        return self._next.kind == "word" and self._next.text.lower() == word

    def _is_mark(self, mark: str) -> bool:
        return self._next.kind == "mark" and self._next.text == mark

    def _take(self, expected: str, met: bool) -> _Token:
        token = self._next
        if not met:
            got = "it ends" if token.kind == "end" else f"got {token.text!r}"
            raise ValueError(f"where: expected {expected} at character {token.position + 1}, {got}: {self.source}")
        return self.tokens.pop(0)
