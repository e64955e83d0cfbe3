"""Conditions on an item's key, label and payload: the tree that search, classify, delete, scroll and count share."""

import enum
from dataclasses import dataclass
from typing import TypeAlias

Scalar: TypeAlias = str | int | float | bool


class Operator(enum.Enum):
    """How a field is tested. A field that an item lacks makes every test but NOT_EXISTS false."""

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


@dataclass(frozen=True, slots=True)
class Comparison:
    """A test of one field.

    Attributes:
        field: `key`, `label` or `payload.` followed by a dotted path of names.
        operator: the test.
        values: what to compare with: none for EXISTS and NOT_EXISTS, one to 1,000 for IN, else exactly one.
    """

    field: str
    operator: Operator
    values: tuple[Scalar, ...] = ()


@dataclass(frozen=True, slots=True)
class AllOf:
    """True when every part is true."""

    parts: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """True when at least one part is true."""

    parts: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class Not:
    """True when the part is false."""

    part: "Condition"


Condition: TypeAlias = Comparison | AllOf | AnyOf | Not
