"""Conditions on an item's key, label and payload: the expression tree of every filter.

Values are typed and never coerced: the text "10" is not the number 10, and true is not 1. Integers and floating-point
numbers are compared by their exact values. `matches` defines the meaning of a condition; the translation to SQL and the
columns in memory give the same results. The text form is in `imagekin.index.filters.parser`.
"""

import enum
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from imagekin.errors import InvalidArgumentError

Scalar: TypeAlias = str | int | float | bool

MAX_TEXT_BYTES = 16 * 1024
MAX_LEVELS = 16
MAX_NODES = 1_000
MAX_VALUES = 1_000
MAX_NAMES = 16
# The first use of a field takes a pass over all payloads, and memory from then on.
MAX_FIELDS = 16
MISSING: Any = object()

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_INT64 = range(-(2**63), 2**63)


class Operator(enum.Enum):
    """The tests of a field. Every test but NOT_EXISTS is false for an item that lacks the field."""

    EQUAL = "="
    NOT_EQUAL = "!="
    LESS = "<"
    LESS_OR_EQUAL = "<="
    GREATER = ">"
    GREATER_OR_EQUAL = ">="
    IN = "IN"
    EXISTS = "EXISTS"
    NOT_EXISTS = "NOT EXISTS"
    STARTS_WITH = "STARTS WITH"


_ORDERINGS = (Operator.LESS, Operator.LESS_OR_EQUAL, Operator.GREATER, Operator.GREATER_OR_EQUAL)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A test of one field.

    Attributes:
        field: `key`, `label` or `payload.` followed by a dotted path of names; a name may be a JSON string in double
            quotes, so that it can contain any character.
        operator: the test.
        values: the values to compare with: none for EXISTS and NOT_EXISTS, 1 to 1,000 for IN, else exactly one.
    """

    field: str
    operator: Operator
    values: tuple[Scalar, ...] = ()


@dataclass(frozen=True, slots=True)
class AllOf:
    """A condition that is true when every part is true."""

    parts: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """A condition that is true when at least one part is true."""

    parts: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class Not:
    """A condition that is true when its part is false."""

    part: "Condition"


Condition: TypeAlias = Comparison | AllOf | AnyOf | Not


def check(condition: Condition) -> Condition:
    """Check that a condition is within the limits and that every test has valid values, and return it.

    Raises:
        InvalidArgumentError: the check fails; the field of the error is `filter`.
    """
    nodes = 0
    paths: set[tuple[str, ...]] = set()
    open_nodes = [(condition, 1)]
    while open_nodes:
        node, level = open_nodes.pop()
        nodes += 1
        if level > MAX_LEVELS:
            raise _wrong(f"a filter has at most {MAX_LEVELS} levels")
        if nodes > MAX_NODES:
            raise _wrong(f"a filter has at most {MAX_NODES:,} nodes")
        if isinstance(node, Comparison):
            paths.add(_check_comparison(node))
            if len(paths - {()}) > MAX_FIELDS:
                raise _wrong(f"a filter tests at most {MAX_FIELDS} fields of the payload")
            continue
        parts = (node.part,) if isinstance(node, Not) else node.parts
        if not parts:
            raise _wrong("a group of conditions is empty: give it at least one part")
        open_nodes.extend((part, level + 1) for part in parts)
    return condition


def path_of(field: str) -> tuple[str, ...]:
    """Return the names of a payload field's path; empty for `key` and `label`.

    Raises:
        InvalidArgumentError: it is not a valid field.
    """
    if field in ("key", "label"):
        return ()
    head, _, rest = field.partition(".")
    if head != "payload" or not rest:
        raise _wrong(f"there is no field {field[:80]!r}: use key, label or payload. and a path of names")
    names: list[str] = []
    at = 0
    while True:
        quoted = _QUOTED.match(rest, at)
        if quoted:
            try:
                name, end = str(json.loads(quoted[0], strict=False)), quoted.end()
            except ValueError:
                raise _wrong(f"the field {field[:80]!r} holds a quoted name that is no JSON string") from None
        else:
            end = rest.find(".", at)
            end = len(rest) if end < 0 else end
            name = rest[at:end]
            if not name or '"' in name:
                raise _wrong(f"the field {field[:80]!r} has an empty name or a stray quotation mark in its path")
        _check_text(name)
        names.append(name)
        if len(names) > MAX_NAMES:
            raise _wrong(f"a path has at most {MAX_NAMES} names")
        if end == len(rest):
            return tuple(names)
        if rest[end] != ".":
            raise _wrong(f"the field {field[:80]!r} needs a dot after a quoted name")
        at = end + 1


def field_of(path: tuple[str, ...]) -> str:
    """Return the field of a payload path, with names in quotes where necessary."""
    return ".".join(
        ["payload", *(json.dumps(n, ensure_ascii=False) if not n or set(n) & set('."') else n for n in path)]
    )


def matches(condition: Condition, key: str, label: str | None, payload: Mapping[str, Any] | None) -> bool:
    """Return whether an item meets a condition; all other implementations agree with this one."""
    if isinstance(condition, AllOf):
        return all(matches(part, key, label, payload) for part in condition.parts)
    if isinstance(condition, AnyOf):
        return any(matches(part, key, label, payload) for part in condition.parts)
    if isinstance(condition, Not):
        return not matches(condition.part, key, label, payload)
    if condition.field == "key":
        return passes(key, condition)
    if condition.field == "label":
        return passes(MISSING if label is None else label, condition)
    return passes(value_at(payload, path_of(condition.field)), condition)


def value_at(payload: Mapping[str, Any] | None, path: tuple[str, ...]) -> Any:
    """Return the value at a path of a payload; MISSING when there is none.

    An integer of more than 64 bits is returned as the nearest floating-point number.
    """
    value: Any = payload
    for name in path:
        if not isinstance(value, (dict, Mapping)) or name not in value:
            return MISSING
        value = value[name]
    if type(value) is int and value not in _INT64:
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return value


def passes(value: Any, comparison: Comparison) -> bool:
    """Return whether a field's value (MISSING for none) passes a test."""
    operator = comparison.operator
    if value is MISSING:
        return operator is Operator.NOT_EXISTS
    if operator in (Operator.EXISTS, Operator.NOT_EXISTS):
        return operator is Operator.EXISTS
    if operator in (Operator.EQUAL, Operator.IN):
        return any(_equal(value, other) for other in comparison.values)
    other = comparison.values[0]
    if operator is Operator.NOT_EQUAL:
        return not _equal(value, other)
    if operator is Operator.STARTS_WITH:
        return isinstance(value, str) and value.startswith(str(other))
    if _kind(value) != _kind(other):
        return False
    if operator is Operator.LESS:
        return bool(value < other)
    if operator is Operator.LESS_OR_EQUAL:
        return bool(value <= other)
    return bool(value > other) if operator is Operator.GREATER else bool(value >= other)


def is_number(value: object) -> bool:
    """Return whether a value is a number; a truth value is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _equal(value: object, other: object) -> bool:
    return _kind(value) == _kind(other) and _kind(value) is not None and value == other


def _kind(value: object) -> str | None:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    return "text" if isinstance(value, str) else None


def _check_comparison(comparison: Comparison) -> tuple[str, ...]:
    """Check a test, and return the path of its field."""
    path = path_of(comparison.field)
    operator, values = comparison.operator, comparison.values
    if operator in (Operator.EXISTS, Operator.NOT_EXISTS):
        fits, wanted = not values, "no value"
    elif operator is Operator.IN:
        fits, wanted = 1 <= len(values) <= MAX_VALUES, f"1 to {MAX_VALUES:,} values"
    else:
        fits, wanted = len(values) == 1, "one value"
    if not fits:
        raise _wrong(f"{operator.value} takes {wanted}, it has {len(values)}")
    for value in values:
        _check_value(value, operator)
    return path


def _check_value(value: Scalar, operator: Operator) -> None:
    if isinstance(value, str):
        _check_text(value)
    elif operator is Operator.STARTS_WITH:
        raise _wrong("STARTS WITH takes a text")
    elif isinstance(value, bool):
        if operator in _ORDERINGS:
            raise _wrong(f"{operator.value} compares numbers or texts, not truth values")
    elif isinstance(value, int):
        if value not in _INT64:
            raise _wrong("an integer has at most 64 bits")
    elif not isinstance(value, float) or not math.isfinite(value):
        raise _wrong("a value is a text, a finite number, true or false")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _wrong("a text holds a lone surrogate") from None


def _wrong(reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"the filter cannot be used: {reason}", field="filter")
