r"""Translate conditions to Milvus expressions, and payloads to the columns that these use.

A payload is stored as text, and its fields are also stored flattened, so that expressions avoid everything that depends
on the version of Milvus (missing members, wrong types, escapes in names):

- `tags`, an array with one entry for every path of the payload: its encoded name after `s:` (a text), `n:` (a number),
  `t:` or `f:` (true, false) or `o:` (null, an array or an object);
- `facts`, a JSON object: the texts, and the numbers as float64, by encoded name.

Every test of a payload's value is combined with the tag of its type, and NOT is pushed down to the tests, so that no
expression negates a member that may be missing. Tests that Milvus does not evaluate exactly (integers from 2^53 on,
control characters in a text) are refused.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from imagekin.errors import InvalidArgumentError
from imagekin.index.filters.conditions import (
    MAX_NAMES,
    AllOf,
    AnyOf,
    Comparison,
    Condition,
    Not,
    Operator,
    Scalar,
    check,
    path_of,
)
from imagekin.index.filters.sql import after_prefix

_ALWAYS = "sequence >= 0"
_NEVER = "sequence < 0"
_MAX_TAGS = 4096
_MAX_FACTS_BYTES = 65_536
_EXACT = 2.0**53
_PLAIN = re.compile(r"[A-Za-z0-9]")
_CONTROL = re.compile(r"[\x00-\x1f]")
_NAME_LENGTH = 200
_OPPOSITE = {
    Operator.LESS: Operator.GREATER_OR_EQUAL,
    Operator.LESS_OR_EQUAL: Operator.GREATER,
    Operator.GREATER: Operator.LESS_OR_EQUAL,
    Operator.GREATER_OR_EQUAL: Operator.LESS,
}


def flatten(payload: Mapping[str, Any] | None) -> tuple[dict[str, str | float], list[str]]:
    """Return a payload's `facts` and `tags`.

    Raises:
        InvalidArgumentError: it has more fields than Milvus can store for one item.
    """
    facts: dict[str, str | float] = {}
    tags: list[str] = []
    for path, value in _members(payload or {}, ()):
        name = _encode_path(path)
        if isinstance(value, bool):
            tags.append(f"{'t' if value else 'f'}:{name}")
        elif isinstance(value, str):
            tags.append(f"s:{name}")
            facts[name] = value
        elif isinstance(value, (int, float)):
            tags.append(f"n:{name}")
            facts[name] = _finite(value)
        else:
            tags.append(f"o:{name}")
    size = len(json.dumps(facts, ensure_ascii=False).encode())
    if len(tags) > _MAX_TAGS or size > _MAX_FACTS_BYTES:
        raise InvalidArgumentError(
            f"the payload has {len(tags):,} fields of {size:,} bytes: Milvus keeps at most {_MAX_TAGS:,} fields of"
            f" {_MAX_FACTS_BYTES:,} bytes",
            field="payload",
        )
    return facts, tags


def _encode_path(path: Sequence[str]) -> str:
    """Return a path's unique name in Milvus, of letters, digits and underscores."""
    name = "_s_".join(map(_escape, path))
    if len(name) <= _NAME_LENGTH:
        return name
    # No escape sequence begins with h, so no short name can be the same.
    return "_h_" + hashlib.blake2b(name.encode(), digest_size=32).hexdigest()


def expression(condition: Condition) -> str:
    """Return the expression that is true for exactly the items that meet a condition.

    Raises:
        InvalidArgumentError: the condition is invalid, or Milvus cannot evaluate it exactly.
    """
    return _expression(check(condition), True)


def both(*expressions: str) -> str:
    """Join expressions by `and`; empty ones are left out."""
    return join([each for each in expressions if each], "and") if any(expressions) else ""


def among(column: str, values: Sequence[str]) -> str:
    """Return the test that a column's text is one of `values`."""
    return f"{column} in [{', '.join(map(_quote, values))}]" if values else _NEVER


def _quote(text: str) -> str:
    """Return a text as a quoted literal."""
    if _CONTROL.search(text):
        raise InvalidArgumentError(
            "the filter cannot be used: Milvus compares no text with control characters", field="filter"
        )
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def join(pieces: Sequence[str], word: str) -> str:
    """Join expressions by `and` or `or` as a balanced tree, because Milvus limits the depth of an expression."""
    if len(pieces) == 1:
        return pieces[0]
    half = len(pieces) // 2
    return f"({join(pieces[:half], word)}) {word} ({join(pieces[half:], word)})"


def has_value(field: str) -> str:
    """Return the test that a field has a value by which items can be grouped."""
    path = path_of(field)
    return join(_tags("sntf", _encode_path(path)), "or") if path else 'label != ""'


def _members(payload: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in payload.items():
        path = (*above, name)
        yield path, value
        # Paths of filters have at most this many names.
        if isinstance(value, dict) and len(path) < MAX_NAMES:
            yield from _members(value, path)


def _escape(name: str) -> str:
    return "".join(each if _PLAIN.match(each) else f"_{ord(each):x}_" for each in name)


def _finite(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(1.7976931348623157e308, 1 if value > 0 else -1)


def _expression(condition: Condition, wanted: bool) -> str:
    """Return an expression that is true for the items for which the condition has the value `wanted`."""
    if isinstance(condition, Not):
        return _expression(condition.part, not wanted)
    if isinstance(condition, (AllOf, AnyOf)):
        parts = [_expression(part, wanted) for part in condition.parts]
        return join(parts, "and" if isinstance(condition, AllOf) is wanted else "or")
    if condition.field in ("key", "label"):
        found = _column_test(condition.field, condition)
        return found if wanted else f"not ({found})"
    return _payload_test(_encode_path(path_of(condition.field)), condition, wanted)


def _column_test(column: str, comparison: Comparison) -> str:
    operator, values = comparison.operator, comparison.values
    present = f'{column} != ""'
    if operator is Operator.EXISTS:
        return present
    if operator is Operator.NOT_EXISTS:
        return f'{column} == ""'
    texts = [value for value in values if isinstance(value, str)]
    if operator in (Operator.EQUAL, Operator.IN):
        # Keys and labels are never empty; "" stands for no label.
        return among(column, [text for text in texts if text])
    if operator is Operator.NOT_EQUAL:
        return both(present, f"{column} != {_quote(texts[0])}") if texts and texts[0] else present
    return both(present, _text_test(column, operator, texts[0])) if texts else _NEVER


def _payload_test(name: str, comparison: Comparison, wanted: bool) -> str:
    operator, values = comparison.operator, comparison.values
    if operator in (Operator.EXISTS, Operator.NOT_EXISTS):
        exists = join(_tags("sntfo", name), "or")
        return exists if (operator is Operator.EXISTS) is wanted else f"not ({exists})"
    if operator is Operator.NOT_EQUAL:
        here = Comparison(comparison.field, Operator.EXISTS)
        equal = Comparison(comparison.field, Operator.EQUAL, values)
        pieces = [_payload_test(name, here, wanted), _payload_test(name, equal, not wanted)]
        return join(pieces, "and" if wanted else "or")
    if operator in (Operator.EQUAL, Operator.IN):
        return join([_value_test(name, Operator.EQUAL, value, wanted) for value in values], "or" if wanted else "and")
    return _value_test(name, operator, values[0], wanted)


def _value_test(name: str, operator: Operator, other: Scalar, wanted: bool) -> str:
    """Return a test of a payload's member against one value, or its negation if not `wanted`."""
    if isinstance(other, bool):
        (tag,) = _tags("t" if other else "f", name)
        return tag if wanted else f"not ({tag})"
    member = f'facts["{name}"]'
    if isinstance(other, str):
        (tag,) = _tags("s", name)
        test = _text_test(member, operator, other) if wanted else _text_fails(member, operator, other)
    else:
        (tag,) = _tags("n", name)
        test = f"{member} {_sign(operator, wanted)} {_number(other)}"
    return f"({tag}) and ({test})" if wanted else f"(not ({tag})) or ({test})"


def _sign(operator: Operator, wanted: bool) -> str:
    if operator is Operator.EQUAL:
        return "==" if wanted else "!="
    return (operator if wanted else _OPPOSITE[operator]).value


def _text_test(expression: str, operator: Operator, value: str) -> str:
    if operator is not Operator.STARTS_WITH:
        return f"{expression} {_sign(operator, True)} {_quote(value)}"
    if not value:
        return _ALWAYS
    return f"({expression} >= {_quote(value)}) and ({expression} < {_quote(_end(value))})"


def _text_fails(expression: str, operator: Operator, value: str) -> str:
    if operator is not Operator.STARTS_WITH:
        return f"{expression} {_sign(operator, False)} {_quote(value)}"
    if not value:
        return _NEVER
    return f"({expression} < {_quote(value)}) or ({expression} >= {_quote(_end(value))})"


def _end(prefix: str) -> str:
    end = after_prefix(prefix)
    if end is None:
        raise InvalidArgumentError(
            "the filter cannot be used: Milvus finds no texts that begin with the last character of Unicode",
            field="filter",
        )
    return end


def _number(value: float) -> str:
    if not -_EXACT < value < _EXACT:
        raise InvalidArgumentError(
            f"the filter cannot be used: Milvus compares numbers exactly only below 2^53, {value} is not",
            field="filter",
        )
    return f"{float(value):.1f}" if float(value).is_integer() else repr(float(value))


def _tags(kinds: str, name: str) -> list[str]:
    return [f'array_contains(tags, "{kind}:{name}")' for kind in kinds]
