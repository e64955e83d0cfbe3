"""Convert the filters of requests to conditions."""

import asyncio
import itertools
from collections.abc import Iterator

from google.protobuf.message import Message

from imagekin.errors import InvalidArgumentError
from imagekin.index.filters.conditions import (
    MAX_LEVELS,
    MAX_NODES,
    MAX_VALUES,
    AllOf,
    AnyOf,
    Comparison,
    Condition,
    Not,
    Operator,
    Scalar,
    check,
)
from imagekin.index.filters.parser import parse
from imagekin.serving.messages import located
from imagekin.v1 import common_pb2

_Kind = common_pb2.Comparison.Operator
_OPERATORS = {
    _Kind.OPERATOR_EQUAL: Operator.EQUAL,
    _Kind.OPERATOR_NOT_EQUAL: Operator.NOT_EQUAL,
    _Kind.OPERATOR_LESS: Operator.LESS,
    _Kind.OPERATOR_LESS_OR_EQUAL: Operator.LESS_OR_EQUAL,
    _Kind.OPERATOR_GREATER: Operator.GREATER,
    _Kind.OPERATOR_GREATER_OR_EQUAL: Operator.GREATER_OR_EQUAL,
    _Kind.OPERATOR_IN: Operator.IN,
    _Kind.OPERATOR_EXISTS: Operator.EXISTS,
    _Kind.OPERATOR_NOT_EXISTS: Operator.NOT_EXISTS,
    _Kind.OPERATOR_STARTS_WITH: Operator.STARTS_WITH,
}


# A filter of up to so many bytes is read faster than it is handed to a thread.
_READ_HERE_BYTES = 2_000


def read_filter(message: common_pb2.Filter) -> Condition:
    """Read the condition of a request's filter.

    Raises:
        InvalidArgumentError: it is empty, too large or cannot be used; the field is `filter`.
    """
    with located("filter"):
        form = message.WhichOneof("form")
        if form == "text":
            return parse(message.text)
        if form == "condition":
            return check(_condition(message.condition, 1, itertools.count(1)))
        raise InvalidArgumentError("the filter is empty: set text or condition, or leave the filter out")


async def given_filter(request: Message) -> Condition | None:
    """Read the condition of a request's field `filter`, None when it is absent.

    Raises:
        InvalidArgumentError: see `read_filter`.
    """
    if not request.HasField("filter"):
        return None
    message: common_pb2.Filter = request.filter  # type: ignore[attr-defined]
    if message.ByteSize() <= _READ_HERE_BYTES:
        return read_filter(message)
    return await asyncio.to_thread(read_filter, message)


def _condition(message: common_pb2.Condition, level: int, nodes: Iterator[int]) -> Condition:
    if level > MAX_LEVELS:
        raise InvalidArgumentError(f"a filter has at most {MAX_LEVELS} levels")
    # Counted on the way, so that no more of them are ever made.
    if next(nodes) > MAX_NODES:
        raise InvalidArgumentError(f"a filter has at most {MAX_NODES:,} nodes")
    node = message.WhichOneof("node")
    if node == "all":
        return AllOf(tuple(_condition(part, level + 1, nodes) for part in message.all.parts))
    if node == "any":
        return AnyOf(tuple(_condition(part, level + 1, nodes) for part in message.any.parts))
    if node == "not":
        return Not(_condition(getattr(message, "not"), level + 1, nodes))
    if node == "comparison":
        return _comparison(message.comparison)
    raise InvalidArgumentError("a node of the filter is empty: set all, any, not or comparison")


def _comparison(message: common_pb2.Comparison) -> Comparison:
    operator = _OPERATORS.get(message.operator)
    if operator is None:
        raise InvalidArgumentError(f"the filter's test of {message.field[:80]!r} has no operator")
    if len(message.values) > MAX_VALUES:
        raise InvalidArgumentError(f"the filter's test of {message.field[:80]!r} has more than {MAX_VALUES:,} values")
    return Comparison(message.field, operator, tuple(read_value(value) for value in message.values))


def read_value(message: common_pb2.Value) -> Scalar:
    """Return the scalar of a message."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidArgumentError("a value of the filter is empty: set one of its kinds")
    value: Scalar = getattr(message, kind)
    return value


def write_value(value: Scalar) -> common_pb2.Value:
    """Return a scalar as a message."""
    if isinstance(value, bool):
        return common_pb2.Value(bool_value=value)
    if isinstance(value, int):
        return common_pb2.Value(int_value=value)
    return common_pb2.Value(double_value=value) if isinstance(value, float) else common_pb2.Value(string_value=value)
