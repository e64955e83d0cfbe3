"""Translate a condition to SQL over the table `item`, with every value and every name as a bound parameter.

SQLite preselects rows, and `matches` decides: SQLite cuts a text at a NUL character, and some versions are wrong in the
last bit of a floating-point number.
"""

import json
import math
import sqlite3
from collections.abc import Iterator

from imagekin.errors import InvalidArgumentError
from imagekin.index.filters.conditions import (
    AllOf,
    Comparison,
    Condition,
    Not,
    Operator,
    Scalar,
    is_number,
    matches,
    path_of,
)
from imagekin.index.storage.reads import decode_payload

_Sql = tuple[str, list[object]]
_ROWS_AT_ONCE = 10_000
# SQLite binds 32,766 values at most.
_MOST_VALUES = 32_000
_NEVER: _Sql = ("0", [])


def to_sql(condition: Condition) -> _Sql:
    """Return an expression over `item` that is NULL or 0 where the condition is false, and the values to bind."""
    if isinstance(condition, Comparison):
        return _comparison(condition)
    if isinstance(condition, Not):
        inner, values = to_sql(condition.part)
        return f"NOT ifnull(({inner}), 0)", values
    return _join([to_sql(part) for part in condition.parts], "AND" if isinstance(condition, AllOf) else "OR")


def matching_rows(
    connection: sqlite3.Connection, condition: Condition, collection: str, after: int = -1
) -> Iterator[tuple[int, str]]:
    """Yield sequence number and key of the matching rows after `after`, as of the connection's transaction.

    Raises:
        InvalidArgumentError: the condition is too large for SQLite.
        DataLossError: a payload fails its checksum; its item is named.
    """
    text, values = to_sql(condition)
    if len(values) > _MOST_VALUES:
        raise InvalidArgumentError("the filter cannot be used: it has too many tests of long paths", field="filter")
    # Keys and labels contain no NUL. Only added for payloads, because it keeps SQLite from using the index of keys.
    cut = " OR instr(payload, '\\u0000')" if _tests_payload(condition) else ""
    rows = connection.execute(
        f"SELECT sequence, key, label, payload, payload_checksum FROM item WHERE sequence > ? AND (({text}){cut})",  # noqa: S608
        [after, *values],
    )
    while page := rows.fetchmany(_ROWS_AT_ONCE):
        for sequence, key, label, text, checksum in page:
            payload = None if text is None else decode_payload(text, checksum, key, collection)
            if matches(condition, key, label, payload):
                yield sequence, key


def _tests_payload(condition: Condition) -> bool:
    if isinstance(condition, Comparison):
        return condition.field not in ("key", "label")
    parts = (condition.part,) if isinstance(condition, Not) else condition.parts
    return any(map(_tests_payload, parts))


def _comparison(comparison: Comparison) -> _Sql:
    if comparison.field in ("key", "label"):
        return _column_test(comparison.field, comparison)
    return _payload_test(path_of(comparison.field), comparison)


def _column_test(column: str, comparison: Comparison) -> _Sql:
    operator, values = comparison.operator, comparison.values
    if operator in (Operator.EXISTS, Operator.NOT_EXISTS):
        return f"{column} IS {'NOT ' if operator is Operator.EXISTS else ''}NULL", []
    if operator is Operator.IN:
        return f"{column} IN (SELECT value FROM json_each(?))", [_texts(values)]  # noqa: S608 (bound)
    value = values[0]
    if not isinstance(value, str):
        return (f"{column} IS NOT NULL", []) if operator is Operator.NOT_EQUAL else _NEVER
    return _text_test(column, operator, value)


def _text_test(expression: str, operator: Operator, value: str) -> _Sql:
    if operator is not Operator.STARTS_WITH:
        return f"{expression} {operator.value} ?", [value]
    if not value:
        return f"{expression} IS NOT NULL", []
    # A range instead of a function, so that SQLite can use an index.
    after = after_prefix(value)
    if after is None:
        return f"{expression} >= ? AND substr({expression}, 1, {len(value)}) = ?", [value, value]
    return f"{expression} >= ? AND {expression} < ?", [value, after]


def after_prefix(prefix: str) -> str | None:
    """Return the least text greater than all texts that begin with `prefix`; None when there is none."""
    kept = prefix.rstrip("\U0010ffff")
    if not kept:
        return None
    code = ord(kept[-1]) + 1
    return kept[:-1] + chr(0xE000 if 0xD800 <= code <= 0xDFFF else code)


def _payload_test(path: tuple[str, ...], comparison: Comparison) -> _Sql:
    if all(name.isprintable() and not set(name) & set('"\\') for name in path):
        bound = "$" + "".join(f'."{name}"' for name in path)
        return _member_test(comparison, "json_type(payload, ?)", "json_extract(payload, ?)", [bound])
    # SQLite's paths cannot express every name; its tables of members can.
    sources = ["json_each(item.payload) m0"]
    for depth in range(1, len(path)):
        sources.append(f"json_each(CASE m{depth - 1}.type WHEN 'object' THEN m{depth - 1}.value END) m{depth}")
    keys = " AND ".join(f"m{depth}.key = ?" for depth in range(len(path)))
    # The keys of an array's members are numbers, and so never equal to a name.
    last = f"m{len(path) - 1}"
    found = f"FROM {', '.join(sources)} WHERE json_type(item.payload) = 'object' AND {keys}"
    return _member_test(comparison, f"(SELECT {last}.type {found})", f"(SELECT {last}.atom {found})", list(path))


def _member_test(comparison: Comparison, kind: str, value: str, names: list[str]) -> _Sql:
    """Return a test of a payload's member; `kind` and `value` are expressions that each bind `names`."""
    operator, values = comparison.operator, comparison.values
    if operator in (Operator.EXISTS, Operator.NOT_EXISTS):
        return f"{kind} IS {'NOT ' if operator is Operator.EXISTS else ''}NULL", [*names]
    if operator is Operator.NOT_EQUAL:
        equal, bound = _value_test(Operator.EQUAL, values[0], kind, value, names)
        return f"{kind} IS NOT NULL AND NOT ifnull(({equal}), 0)", [*names, *bound]
    if operator is not Operator.IN:
        return _value_test(operator, values[0], kind, value, names)
    # All values are bound as one JSON text, which SQLite expands: their number is not limited.
    # Chosen before they are made unique: Python takes true for 1.
    truths = {one for one in values if isinstance(one, bool)}
    pieces = [_value_test(Operator.EQUAL, one, kind, value, names) for one in truths]
    for kinds, wanted in (
        ("('text')", [one for one in values if isinstance(one, str) and "\0" not in one]),
        ("('integer', 'real')", [one for one in values if is_number(one)]),
    ):
        if wanted:
            test = f"{kind} IN {kinds} AND {value} IN (SELECT value FROM json_each(?))"  # noqa: S608 (bound)
            pieces.append((test, [*names, *names, json.dumps(wanted, ensure_ascii=False)]))
    return _join(pieces, "OR") if pieces else _NEVER


def _value_test(operator: Operator, other: Scalar, kind: str, value: str, names: list[str]) -> _Sql:
    if isinstance(other, bool):
        return f"{kind} = ?", [*names, "true" if other else "false"]
    if is_number(other):
        test = f"{value} {operator.value} {'CAST(? AS REAL)' if isinstance(other, float) else '?'}"
        # As text, which SQLite parses with the same function as the payload's numbers.
        bound = repr(other) if isinstance(other, float) and math.isfinite(other) else other
        return f"{kind} IN ('integer', 'real') AND {test}", [*names, *names, bound]
    assert isinstance(other, str)  # noqa: S101  for the type checker: nothing else is a Scalar
    test, bound_values = _text_test(value, operator, other)
    uses = test.count(value)
    return f"{kind} = 'text' AND {test}", [*names, *_interleave(names, uses, bound_values)]


def _interleave(names: list[str], uses: int, values: list[object]) -> list[object]:
    """Return the values to bind where a member is used `uses` times, each followed by its value if it has one."""
    bound: list[object] = []
    for use in range(uses):
        bound += [*names, *values[use : use + 1]]
    return bound


def _join(pieces: list[_Sql], word: str) -> _Sql:
    """Join expressions by AND or OR as a balanced tree, because SQLite limits the depth of an expression."""
    if len(pieces) == 1:
        return pieces[0]
    half = len(pieces) // 2
    (left, first), (right, second) = _join(pieces[:half], word), _join(pieces[half:], word)
    return f"({left}) {word} ({right})", first + second


def _texts(values: tuple[Scalar, ...]) -> str:
    """Return the texts among values as JSON, for SQLite to expand.

    Those with a NUL are left out: SQLite would cut them there, and no text that it compares them with has one (keys and
    labels never do, and payloads that do are not left to SQLite).
    """
    return json.dumps([value for value in values if isinstance(value, str) and "\0" not in value], ensure_ascii=False)
