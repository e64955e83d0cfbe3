"""A filter means what `matches` says, in text, in SQL and as a tree; values have types; no text is ever executed."""

import contextlib
import json
import sqlite3
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagekin.errors import InvalidArgumentError
from imagekin.index.filters.conditions import (
    AllOf,
    AnyOf,
    Comparison,
    Condition,
    Not,
    Operator,
    check,
    field_of,
    matches,
    path_of,
)
from imagekin.index.filters.parser import parse, to_text
from imagekin.index.filters.sql import matching_rows, to_sql
from imagekin.index.storage.schema import payload_checksum
from tests.index.conditions import LABELS, NAMES, PAYLOADS, conditions

KEYS = ["k0", "a", "ab", "é", "10", "'; DROP TABLE item; --"]


@given(conditions(least=2))
def test_text_and_tree_are_two_forms_of_one_condition(condition: Condition) -> None:
    assert parse(to_text(condition)) == condition


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_a_path_of_any_names_is_a_field(names: list[str]) -> None:
    assert path_of(field_of(tuple(names))) == tuple(names)


@settings(max_examples=300, deadline=None)
@given(conditions(), st.lists(st.tuples(LABELS, PAYLOADS), min_size=1, max_size=6))
def test_sql_selects_what_the_meaning_says(condition: Condition, items: list[tuple[str | None, Any]]) -> None:
    rows = [(number, KEYS[number % 6], label, payload) for number, (label, payload) in enumerate(items)]
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(
            "CREATE TABLE item (sequence INTEGER PRIMARY KEY, key TEXT, label TEXT, payload TEXT,"
            " payload_checksum INTEGER) STRICT"
        )
        texts = [None if payload is None else json.dumps(payload, ensure_ascii=False) for *_, payload in rows]
        checks = [None if text is None else payload_checksum(text) for text in texts]
        stored = [(n, k, la, text, at) for (n, k, la, _), text, at in zip(rows, texts, checks, strict=True)]
        connection.executemany("INSERT INTO item VALUES (?, ?, ?, ?, ?)", stored)
        expected = [n for n, key, label, payload in rows if matches(condition, key, label, payload)]
        assert [n for n, _ in matching_rows(connection, condition, "c")] == expected
        text, values = to_sql(condition)
        alone = connection.execute(f"SELECT sequence FROM item WHERE {text}", values).fetchall()  # noqa: S608
        # SQLite alone ends a text at NUL, which is why it does not decide; it must never miss what it was not told.
        if "\\u0000" not in json.dumps([row[3] for row in stored]) and "\\u0000" not in to_text(condition):
            assert [n for (n,) in alone] == expected


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ('label = "shoe"', Comparison("label", Operator.EQUAL, ("shoe",))),
        ("label = 'it''s'", Comparison("label", Operator.EQUAL, ("it's",))),
        ("payload.price<10", Comparison("payload.price", Operator.LESS, (10,))),
        ("payload.price >= -1.5e3", Comparison("payload.price", Operator.GREATER_OR_EQUAL, (-1500.0,))),
        ("payload.sold != TRUE", Comparison("payload.sold", Operator.NOT_EQUAL, (True,))),
        ("payload.a.in.7 not exists", Comparison("payload.a.in.7", Operator.NOT_EXISTS)),
        ('payload."a b"."c.d" EXISTS', Comparison('payload.a b."c.d"', Operator.EXISTS)),
        ('key starts with "x/"', Comparison("key", Operator.STARTS_WITH, ("x/",))),
        ('label IN ("a", 1, 1.0, false)', Comparison("label", Operator.IN, ("a", 1, 1.0, False))),
        (
            'NOT label = "a" AND label EXISTS OR (key = "k" OR key = "l")',
            AnyOf(
                (
                    AllOf((Not(Comparison("label", Operator.EQUAL, ("a",))), Comparison("label", Operator.EXISTS))),
                    AnyOf(
                        (
                            Comparison("key", Operator.EQUAL, ("k",)),
                            Comparison("key", Operator.EQUAL, ("l",)),
                        )
                    ),
                )
            ),
        ),
    ],
)
def test_the_text_form(text: str, tree: Condition) -> None:
    assert parse(text) == tree


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("", 1, "a field"),
        ("label", 6, "a test"),
        ("label = ", 9, "a value"),
        ("label = shoe", 9, "quotation marks"),
        ('label = "shoe', 9, "does not end"),
        ('label = "a\\x"', 9, "JSON string"),
        ('label = "a" label = "b"', 13, "AND, OR"),
        ('label = "a" AND', 16, "a field"),
        ('(label = "a"', 13, "expected )"),
        ("price < 10", 1, "a field"),
        ("payload < 10", 9, "a dot and a name"),
        ("payload..x = 1", 9, "a name"),
        ("payload.x = 12a", 13, "means nothing"),
        ("payload.x = 99999999999999999999", 11, "64 bits"),
        ("payload.x = 1e999", 11, "finite"),
        ("payload.x < true", 11, "truth values"),
        ("payload.x STARTS WITH 1", 11, "a text"),
        ("payload.x IN ()", 15, "a value"),
        ("label = 'a'; DROP TABLE item", 12, "means nothing"),
        ("(" * 17 + "label EXISTS" + ")" * 17, 17, "levels"),
        ("(" * 8000, 17, "levels"),
        ("NOT " * 4000, 65, "levels"),
    ],
)
def test_a_mistake_is_told_with_its_column(text: str, column: int, says: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"filter, column {column}: ")
    assert says in str(caught.value)
    assert caught.value.field == "filter"
    assert "\n" not in str(caught.value)


@settings(max_examples=300)
@given(st.text(alphabet=" ()<>=!\"'.,AND\\ORNOTINkeylabelpayload019-+e\x00\ud800é"))
def test_any_text_is_a_filter_or_refused_in_one_line(text: str) -> None:
    message = ""
    try:
        parse(text)
    except InvalidArgumentError as error:
        message = str(error)
    assert "\n" not in message


LEAF = Comparison("label", Operator.EXISTS)


def _nested(levels: int) -> Condition:
    node: Condition = LEAF
    for _ in range(levels - 1):
        node = Not(node)
    return node


@pytest.mark.parametrize(
    "condition",
    [
        AllOf(()),
        AnyOf(()),
        _nested(17),
        AnyOf((LEAF,) * 1000),
        AnyOf(tuple(Comparison(f"payload.f{n}", Operator.EXISTS) for n in range(17))),
        Comparison("price", Operator.EXISTS),
        Comparison("payload.", Operator.EXISTS),
        Comparison("payload.a..b", Operator.EXISTS),
        Comparison('payload."a', Operator.EXISTS),
        Comparison('payload."a"b', Operator.EXISTS),
        Comparison("payload." + ".".join("a" * 17), Operator.EXISTS),
        Comparison("payload.\ud800", Operator.EXISTS),
        Comparison("label", Operator.EXISTS, ("a",)),
        Comparison("label", Operator.EQUAL),
        Comparison("label", Operator.EQUAL, ("a", "b")),
        Comparison("label", Operator.IN),
        Comparison("label", Operator.IN, ("a",) * 1001),
        Comparison("label", Operator.EQUAL, ("\udfff",)),
        Comparison("label", Operator.EQUAL, (float("nan"),)),
        Comparison("label", Operator.EQUAL, (2**63,)),
        Comparison("label", Operator.LESS, (True,)),
        Comparison("label", Operator.STARTS_WITH, (1,)),
    ],
)
def test_a_tree_out_of_its_limits_is_refused(condition: Condition) -> None:
    with pytest.raises(InvalidArgumentError):
        check(condition)


def test_the_largest_filters_still_run() -> None:
    """A text or a tree at the limits is neither too deep for Python nor for SQLite."""
    hostile = Comparison(field_of(('"',) * 16), Operator.IN, tuple(range(1000)))
    widest = AnyOf((Comparison("payload.a", Operator.IN, tuple(f"t{n}" for n in range(1000))),) * 999)
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(
            "CREATE TABLE item (sequence INTEGER PRIMARY KEY, key TEXT, label TEXT, payload TEXT,"
            " payload_checksum INTEGER) STRICT"
        )
        for condition in (widest, _nested(16), AllOf((hostile,) * 99)):
            assert list(matching_rows(connection, check(condition), "c")) == []
        with pytest.raises(InvalidArgumentError, match="too many"):
            list(matching_rows(connection, check(AllOf((hostile,) * 999)), "c"))


def test_types_are_never_coerced() -> None:
    payload = {"n": 10, "s": "10", "t": True, "one": 1, "null": None, "big": 2**53 + 1, "list": [1], "huge": 10**400}

    def holds(text: str) -> bool:
        return matches(parse(text), "k", None, payload)

    assert holds("payload.n = 10")
    assert holds("payload.n = 10.0")
    assert not holds('payload.n = "10"')
    assert holds('payload.n != "10"')
    assert not holds("payload.s < 11")
    assert not holds("payload.t = 1")
    assert not holds("payload.one = true")
    assert not holds("payload.missing = false")
    assert not holds("payload.missing != 1")
    assert holds("NOT payload.missing = 1")
    assert holds("payload.null EXISTS AND payload.null != 1 AND NOT payload.null = 1")
    assert not holds("payload.big = 9007199254740992")
    assert not holds("payload.big = 9007199254740992.0")
    assert holds("payload.big > 9007199254740992.0")
    assert holds("payload.list EXISTS AND payload.list != 1 AND NOT payload.list = 1")
    assert holds("payload.huge > 1e308")
    assert not holds("label EXISTS")
    assert holds("label NOT EXISTS")
