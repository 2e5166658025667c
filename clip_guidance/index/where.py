"""Metadata filters: ``year >= 2020 and album in (cats, "guinea pigs") and path ~ "*/2024/*"``.

    filter    = condition, {"and", condition}
    condition = key, ("=" | "!=" | "<" | "<=" | ">" | ">=" | "~"), value | key, "in", "(", value, {",", value}, ")"

A bare key with dots is nested (``camera.model``), a quoted key is taken as it stands; ``path`` is the image's own.
Values are numbers, ``true``, ``false``, ``null``, bare words or quoted texts. A number is compared with numbers only, a
text with texts only (character by character, so dates written 2024-05-01 are in order), and an image without the key
matches nothing but ``key = null``. ``~`` matches a text with the wildcards ``*``, ``?`` and ``[a-z]``.

The result is SQL with parameters: of what was typed the keys alone become part of a statement, checked and quoted,
since SQLite finds an index by the expression (:mod:`.keys`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clip_guidance._files import is_valid_text, shorten
from clip_guidance.index.keys import PATH, type_and_value
from clip_guidance.index.order import Term, Values

_TOKEN = re.compile(
    r"""\s*(?: (?P<text> "[^"]*" | '[^']*' ) | (?P<operator> <= | >= | != | == | = | < | > | ~ )
        | (?P<mark> [(),] ) | (?P<word> [^\s"'(),=<>!~]+ ) )""",
    re.VERBOSE,
)
_SQL = {"=": "=", "==": "=", "<": "<", "<=": "<=", ">": ">", ">=": ">=", "~": "GLOB"}


@dataclass(frozen=True)
class Condition:
    """Hold a part of an SQL statement over the table of entries, and the values of its question marks.

    Attributes:
        sql: The part, an expression.
        parameters: The values of its question marks.
        keys: Keys of the metadata without which no image meets it, each from the outermost to the innermost name.
        reads: The one key whose index answers it (:mod:`.keys`); None where there is no such key.
        parts: Conditions that must all be met, of each key at most one of comparisons and one with patterns; empty
            where it is its own only part.
        terms: What it asks of the key, all of it, for the order of its index (:mod:`.order`); empty where it asks for
            more than comparisons.
    """

    sql: str
    parameters: tuple[Any, ...]
    keys: tuple[tuple[str, ...], ...] = ()
    reads: tuple[str, ...] | None = None
    parts: tuple[Condition, ...] = ()
    terms: tuple[Term, ...] = ()


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
        if "\0" in where or not is_valid_text(where):
            raise ValueError(f"where: expected valid text, got {where!a:.100}")
        return _Parser(where).filter()
    if not isinstance(where, Mapping):
        raise ValueError(f"where: expected a text or a mapping, got {type(where).__name__}")
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
            if not (isinstance(name, str) and is_valid_text(name) and re.fullmatch(r'[^"\\\x00-\x1f]+', name)):
                # SQLite has no way to quote these
                raise ValueError(f"where: expected a key without quotes and backslashes, got {name!r:.60}")

    @property
    def is_path(self) -> bool:
        return self.names == PATH


def _compare(key: _Key, operator: str, value: Any) -> Condition:
    """Translate one comparison.

    ``json_type`` decides first: SQLite itself would call every number smaller than every text.
    """
    if operator == "!=":
        equal = _compare(key, "=", value)
        differs = f"NOT ifnull({equal.sql}, 0)"
        terms: tuple[Term, ...] = (replace(equal.terms[0], negated=True),)
        if key.is_path:
            return Condition(differs, equal.parameters, reads=PATH, terms=terms)
        has = f"{type_and_value(key.names)[0]} IS NOT NULL"
        return Condition(f"{has} AND {differs}", equal.parameters, (key.names,), key.names, terms=terms)
    sign = _SQL[operator]
    if key.is_path:  # the one image of a path is found by the index that keeps paths unique
        reads = None if sign == "=" else PATH
        return Condition(f"path {sign} ?", (_text(value),), reads=reads, terms=_terms(["text"], sign, _text(value)))
    (kind, found), keys = type_and_value(key.names), (key.names,)
    if value is None or isinstance(value, bool):
        if sign != "=":
            raise ValueError(f"where: {json.dumps(value)} can be compared with = and != only, got {operator}")
        if value is None:
            return Condition(f"{kind} IS NULL", (), reads=key.names, terms=_terms([None]))
        name = json.dumps(value)
        return Condition(f"{kind} = ?", (name,), keys, key.names, terms=_terms([name]))
    if isinstance(value, (int, float)) and sign != "GLOB":
        kinds, of, value = "IN ('integer', 'real')", ["integer", "real"], _number(value)
    elif isinstance(value, (str, int, float)):
        kinds, of, value = "= 'text'", ["text"], _text(value)
    else:
        raise ValueError(f"where: expected a text, number, truth value or None, got {value!r:.60}")
    terms = _terms(of, sign, value)
    return Condition(f"{kind} {kinds} AND {found} {sign} ?", (value,), keys, key.names, terms=terms)


def _terms(kinds: Sequence[str | None], operator: str = "", value: float | str = "") -> tuple[Term, ...]:
    return () if operator == "GLOB" else (Term(tuple(Values(kind, operator, value) for kind in kinds)),)


def _number(value: float) -> float:
    """Return a number that SQLite can hold."""
    if abs(value) < 2**63:
        return value
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf if value > 0 else -math.inf


def _all(conditions: Sequence[Condition]) -> Condition:
    of_key: dict[Any, list[Condition]] = {}
    for condition in conditions:
        for part in condition.parts or (condition,):
            of_key.setdefault((part.reads, bool(part.terms)), []).append(part)
    parts = tuple(_of_key(same) for same in of_key.values())
    return parts[0] if len(parts) == 1 else replace(_joined(" AND ", parts) if parts else ALL, parts=parts)


def _of_key(conditions: Sequence[Condition]) -> Condition:
    terms = tuple(term for condition in conditions for term in condition.terms)
    return replace(_joined(" AND ", conditions), reads=conditions[0].reads, terms=terms)


def _joined(operator: str, conditions: Sequence[Condition]) -> Condition:
    sql = operator.join(f"({condition.sql})" for condition in conditions)
    parameters = tuple(value for condition in conditions for value in condition.parameters)
    return Condition(sql, parameters, tuple(key for condition in conditions for key in condition.keys))


def _any(conditions: Any) -> Condition:
    conditions = list(conditions)
    if not conditions:
        return Condition("0", ())
    keys = {condition.keys for condition in conditions}  # of one key, unless one asks for null
    terms = (Term(tuple(values for condition in conditions for values in condition.terms[0].any_of)),)
    joined = _joined(" OR ", conditions)
    return replace(joined, keys=keys.pop() if len(keys) == 1 else (), reads=conditions[0].reads, terms=terms)


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
        raise ValueError(f"where: {problem} at character {at + 1}: {shorten(source, 150)}")
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
        except (ValueError, RecursionError):
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
            got = "it ends" if token.kind == "end" else f"got {shorten(token.text, 30)!r}"
            where = f"at character {token.position + 1}"
            raise ValueError(f"where: expected {expected} {where}, {got}: {shorten(self.source, 120)}")
        return self.tokens.pop(0)
