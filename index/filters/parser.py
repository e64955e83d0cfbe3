"""Parse and write the text form of a filter: `label = "shoe" AND (payload.price < 10 OR NOT payload.sold EXISTS)`.

    condition  = every { OR every }
    every      = part { AND part }
    part       = NOT part | "(" condition ")" | test
    test       = field ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) value | field IN "(" value { "," value } ")"
               | field EXISTS | field NOT EXISTS | field STARTS WITH text
    field      = "key" | "label" | "payload" { "." ( name | JSON string ) }
    value      = JSON string | 'text, a quotation mark in it doubled' | number | true | false

Words such as AND may be written in any case; names are letters, digits, `_` and `-`. Errors name the column.
"""

import json
import re
from dataclasses import dataclass
from typing import NoReturn

from imagekin.errors import InvalidArgumentError
from imagekin.index.filters.conditions import (
    MAX_LEVELS,
    MAX_TEXT_BYTES,
    MAX_VALUES,
    AllOf,
    AnyOf,
    Comparison,
    Condition,
    Not,
    Operator,
    Scalar,
    check,
    field_of,
    path_of,
)

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^']|'')*')
    | (?P<number>[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<symbol><=|>=|!=|=|<|>|\(|\)|,|\.)
    | (?P<word>[^\W\d][\w-]*)
    | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_NAME = re.compile(r"[^\W\d][\w-]*|\d[\w-]*")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_SYMBOLS = {
    operator.value: operator
    for operator in (
        Operator.EQUAL,
        Operator.NOT_EQUAL,
        Operator.LESS,
        Operator.LESS_OR_EQUAL,
        Operator.GREATER,
        Operator.GREATER_OR_EQUAL,
    )
}


def parse(text: str) -> Condition:
    """Parse a filter's text.

    Raises:
        InvalidArgumentError: the text is invalid or too large; the message names the column, counted from 1.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgumentError("the filter holds a lone surrogate", field="filter") from None
    if size > MAX_TEXT_BYTES:
        raise InvalidArgumentError(
            f"the filter has {size:,} bytes, at most {MAX_TEXT_BYTES:,} are read", field="filter"
        )
    reader = _Parser(text)
    condition = reader.condition(1)
    if reader.token.kind != "end":
        reader.fail("expected AND, OR or the end")
    return check(condition)


def to_text(condition: Condition) -> str:
    """Return a text that `parse` turns into the same condition (groups of one part become that part)."""
    if isinstance(condition, Comparison):
        return _comparison_text(condition)
    if isinstance(condition, Not):
        return f"NOT {_inner(condition.part)}"
    if len(condition.parts) == 1:
        return to_text(condition.parts[0])
    return (" AND " if isinstance(condition, AllOf) else " OR ").join(_inner(part) for part in condition.parts)


def _inner(part: Condition) -> str:
    while isinstance(part, (AllOf, AnyOf)) and len(part.parts) == 1:
        part = part.parts[0]
    text = to_text(part)
    return f"({text})" if isinstance(part, (AllOf, AnyOf)) else text


def _comparison_text(comparison: Comparison) -> str:
    path = path_of(comparison.field)
    names = [name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False) for name in path]
    field = ".".join(["payload", *names]) if path else comparison.field
    operator = comparison.operator
    values = [json.dumps(value, ensure_ascii=False) for value in comparison.values]
    if operator is Operator.IN:
        return f"{field} IN ({', '.join(values)})"
    return " ".join([field, operator.value, *values])


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    begin: int


class _Parser:
    """A recursive-descent parser with one token of lookahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._end = 0
        self.token = self._next()

    def condition(self, level: int) -> Condition:
        parts = [self._every(level)]
        while self._word("OR"):
            parts.append(self._every(level))
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def fail(self, reason: str, hint: str = "") -> NoReturn:
        token = self.token
        found = "the end" if token.kind == "end" else repr(token.text[:40])
        raise _error(f"{reason}, found {found}{hint}", token.begin)

    def _every(self, level: int) -> Condition:
        parts = [self._part(level)]
        while self._word("AND"):
            parts.append(self._part(level))
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _part(self, level: int) -> Condition:
        if level > MAX_LEVELS:
            raise _error(f"a filter has at most {MAX_LEVELS} levels", self.token.begin)
        if self._word("NOT"):
            return Not(self._part(level + 1))
        if self._symbol("("):
            inside = self.condition(level + 1)
            self._expect(")")
            return inside
        return self._test()

    def _test(self) -> Comparison:
        field = self._field()
        token = self.token
        if token.kind == "symbol" and token.text in _SYMBOLS:
            self._advance()
            return self._checked(Comparison(field, _SYMBOLS[token.text], (self._value(),)), token)
        if self._word("IN"):
            self._expect("(")
            values = [self._value()]
            while self._symbol(","):
                if len(values) == MAX_VALUES:
                    raise _error(f"IN takes at most {MAX_VALUES:,} values", self.token.begin)
                values.append(self._value())
            self._expect(")")
            return self._checked(Comparison(field, Operator.IN, tuple(values)), token)
        if self._word("EXISTS"):
            return Comparison(field, Operator.EXISTS)
        if self._word("NOT"):
            if not self._word("EXISTS"):
                self.fail("expected EXISTS")
            return Comparison(field, Operator.NOT_EXISTS)
        if self._word("STARTS"):
            if not self._word("WITH"):
                self.fail("expected WITH")
            return self._checked(Comparison(field, Operator.STARTS_WITH, (self._value(),)), token)
        return self.fail("expected a test such as =, <, IN or EXISTS")

    def _field(self) -> str:
        token = self.token
        if token.kind != "word" or token.text not in ("key", "label", "payload"):
            known = "" if token.kind != "word" else f"; did you mean payload.{token.text}?"
            self.fail("expected a field (key, label or payload.…), NOT or (", known)
        self._advance()
        if token.text != "payload":
            return token.text
        names: list[str] = []
        while not names or self.token.text == ".":
            if self.token.text != ".":
                self.fail("expected a dot and a name after payload")
            # Not by `_TOKEN`: after a dot, digits and words such as `in` are names too.
            name = _NAME.match(self._text, self._end)
            if name:
                self._end = name.end()
                names.append(name[0])
                self.token = self._next()
                continue
            self._advance()
            if self.token.kind != "text" or self.token.text[0] != '"':
                self.fail("expected a name")
            names.append(self._string(self.token))
            self._advance()
        return field_of(tuple(names))

    def _value(self) -> Scalar:
        token = self.token
        self._expect_value(token)
        self._advance()
        if token.kind == "text":
            return self._string(token)
        if token.kind == "word":
            return token.text.lower() == "true"
        try:
            return int(token.text)
        except ValueError:
            return float(token.text)

    def _expect_value(self, token: _Token) -> None:
        if not (token.kind in ("text", "number") or (token.kind == "word" and token.text.lower() in ("true", "false"))):
            hint = f'; write "{token.text}" with its quotation marks' if token.kind == "word" else ""
            hint = "; equality is a single =" if token.text == "=" else hint
            self.fail("expected a value (a text in quotation marks, a number, true or false)", hint)

    def _string(self, token: _Token) -> str:
        if token.text[0] == "'":
            return token.text[1:-1].replace("''", "'")
        try:
            return str(json.loads(token.text, strict=False))
        except ValueError:
            raise _error("the text is no JSON string; a backslash is written twice", token.begin) from None

    def _checked(self, comparison: Comparison, token: _Token) -> Comparison:
        try:
            check(comparison)
        except InvalidArgumentError as error:
            raise _error(str(error).partition(": ")[2], token.begin) from None
        return comparison

    def _word(self, word: str) -> bool:
        if self.token.kind != "word" or self.token.text.upper() != word:
            return False
        self._advance()
        return True

    def _symbol(self, symbol: str) -> bool:
        if self.token.kind != "symbol" or self.token.text != symbol:
            return False
        self._advance()
        return True

    def _expect(self, symbol: str) -> None:
        if not self._symbol(symbol):
            self.fail(f"expected {symbol}")

    def _advance(self) -> None:
        self.token = self._next()

    def _next(self) -> _Token:
        found = _TOKEN.match(self._text, self._end)
        if found is None or found.lastgroup is None:
            begin = self._end + len(self._text[self._end :]) - len(self._text[self._end :].lstrip())
            what = (
                "the text does not end" if self._text[begin] in "\"'" else f"{self._text[begin]!r} means nothing here"
            )
            raise _error(what, begin)
        self._end = found.end()
        return _Token(found.lastgroup, found[found.lastgroup], found.start(found.lastgroup))


def _error(reason: str, at: int) -> InvalidArgumentError:
    return InvalidArgumentError(f"filter, column {at + 1}: {reason}", field="filter")
