r"""Conditions as Milvus expressions, and the columns of a payload that make them exact.

A payload is kept as text, and beside it what its fields hold, flattened, so that an expression depends on nothing in
which versions of Milvus differ (missing members, types that do not fit, escapes in names):

- `tags`, an array: for every path of the payload its encoded name after `s:` (a text), `n:` (a number), `t:` or `f:`
  (true, false) or `o:` (null, an array or an object);
- `facts`, a JSON object: the texts, and the numbers as float64, by encoded name.

A test of a payload's value stands beside the tag of its type, and NOT is pushed down to the tests, so that no
expression negates a member that may be missing. What Milvus cannot tell exactly (integers from 2^53 on, control
characters in a text) is refused.
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

ALWAYS = "sequence >= 0"
NEVER = "sequence < 0"
MAX_TAGS = 4096
MAX_FACTS_BYTES = 65_536
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


def flattened(payload: Mapping[str, Any] | None) -> tuple[dict[str, str | float], list[str]]:
    """Return a payload's `facts` and `tags`.

    Raises:
        InvalidArgumentError: it has more fields than Milvus keeps of one item.
    """
    facts: dict[str, str | float] = {}
    tags: list[str] = []
    for path, value in _members(payload or {}, ()):
        name = encoded(path)
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
    if len(tags) > MAX_TAGS or size > MAX_FACTS_BYTES:
        raise InvalidArgumentError(
            f"the payload has {len(tags):,} fields of {size:,} bytes: Milvus keeps at most {MAX_TAGS:,} fields of"
            f" {MAX_FACTS_BYTES:,} bytes",
            field="payload",
        )
    return facts, tags


def encoded(path: Sequence[str]) -> str:
    """Return a path's name in Milvus: letters, digits and underscores, different for different paths."""
    name = "_s_".join(map(_escaped, path))
    if len(name) <= _NAME_LENGTH:
        return name
    # No escape begins with h, so that no short name is the same.
    return "_h_" + hashlib.blake2b(name.encode(), digest_size=32).hexdigest()


def expression(condition: Condition) -> str:
    """Return the expression that is true for exactly the items that meet a condition.

    Raises:
        InvalidArgumentError: the condition is none, or Milvus cannot tell exactly what meets it.
    """
    return _expression(check(condition), True)


def both(*expressions: str) -> str:
    """Return the expression that is true where all are; empty ones count for nothing."""
    return joined([each for each in expressions if each], "and") if any(expressions) else ""


def among(column: str, values: Sequence[str]) -> str:
    """Return the test whether a column's text is one of `values`."""
    return f"{column} in [{', '.join(map(quoted, values))}]" if values else NEVER


def quoted(text: str) -> str:
    """Return a text as an expression writes it."""
    if _CONTROL.search(text):
        raise InvalidArgumentError(
            "the filter cannot be used: Milvus compares no text with control characters", field="filter"
        )
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def joined(pieces: Sequence[str], word: str) -> str:
    """Return the pieces joined by `and` or `or`, as a balanced tree: the depth of an expression is bounded."""
    if len(pieces) == 1:
        return pieces[0]
    half = len(pieces) // 2
    return f"({joined(pieces[:half], word)}) {word} ({joined(pieces[half:], word)})"


def has_value(field: str) -> str:
    """Return the test whether a field holds a value by which items can be grouped."""
    path = path_of(field)
    return joined(_tags("sntf", encoded(path)), "or") if path else 'label != ""'


def _members(payload: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in payload.items():
        path = (*above, name)
        yield path, value
        # A filter's path has no more names.
        if isinstance(value, dict) and len(path) < MAX_NAMES:
            yield from _members(value, path)


def _escaped(name: str) -> str:
    return "".join(each if _PLAIN.match(each) else f"_{ord(each):x}_" for each in name)


def _finite(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(1.7976931348623157e308, 1 if value > 0 else -1)


def _expression(condition: Condition, wanted: bool) -> str:
    """Return an expression that is true for the items for which the condition is as wanted."""
    if isinstance(condition, Not):
        return _expression(condition.part, not wanted)
    if isinstance(condition, (AllOf, AnyOf)):
        parts = [_expression(part, wanted) for part in condition.parts]
        return joined(parts, "and" if isinstance(condition, AllOf) is wanted else "or")
    if condition.field in ("key", "label"):
        found = _of_column(condition.field, condition)
        return found if wanted else f"not ({found})"
    return _of_payload(encoded(path_of(condition.field)), condition, wanted)


def _of_column(column: str, comparison: Comparison) -> str:
    operator, values = comparison.operator, comparison.values
    present = f'{column} != ""'
    if operator is Operator.EXISTS:
        return present
    if operator is Operator.NOT_EXISTS:
        return f'{column} == ""'
    texts = [value for value in values if isinstance(value, str)]
    if operator in (Operator.EQUAL, Operator.IN):
        # No key or label is empty; "" stands for none.
        return among(column, [text for text in texts if text])
    if operator is Operator.NOT_EQUAL:
        return both(present, f"{column} != {quoted(texts[0])}") if texts and texts[0] else present
    return both(present, _text_test(column, operator, texts[0])) if texts else NEVER


def _of_payload(name: str, comparison: Comparison, wanted: bool) -> str:
    operator, values = comparison.operator, comparison.values
    if operator in (Operator.EXISTS, Operator.NOT_EXISTS):
        exists = joined(_tags("sntfo", name), "or")
        return exists if (operator is Operator.EXISTS) is wanted else f"not ({exists})"
    if operator is Operator.NOT_EQUAL:
        here = Comparison(comparison.field, Operator.EXISTS)
        equal = Comparison(comparison.field, Operator.EQUAL, values)
        pieces = [_of_payload(name, here, wanted), _of_payload(name, equal, not wanted)]
        return joined(pieces, "and" if wanted else "or")
    if operator in (Operator.EQUAL, Operator.IN):
        return joined([_one(name, Operator.EQUAL, value, wanted) for value in values], "or" if wanted else "and")
    return _one(name, operator, values[0], wanted)


def _one(name: str, operator: Operator, other: Scalar, wanted: bool) -> str:
    """Return a test of a payload's member against one value, or what is true where that fails."""
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
        return f"{expression} {_sign(operator, True)} {quoted(value)}"
    if not value:
        return ALWAYS
    return f"({expression} >= {quoted(value)}) and ({expression} < {quoted(_end(value))})"


def _text_fails(expression: str, operator: Operator, value: str) -> str:
    if operator is not Operator.STARTS_WITH:
        return f"{expression} {_sign(operator, False)} {quoted(value)}"
    if not value:
        return NEVER
    return f"({expression} < {quoted(value)}) or ({expression} >= {quoted(_end(value))})"


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
