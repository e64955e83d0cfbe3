"""Random conditions and the payloads that they are about, hostile names and values among them."""

from typing import Any

import hypothesis.strategies as st

from imagekin.index.filters.conditions import AllOf, AnyOf, Comparison, Condition, Not, Operator, Scalar, field_of

NAMES = st.sampled_from(
    ["a", "b", "price", "in", "7", "ä", "a b", 'q"', "\\", "$", "a.b", "", "x\u0001", "'; --", "[0]"]
)
TEXTS = st.sampled_from(
    ["", "a", "ab", "10", "true", "é", "z\U0010ffff", "\U0010ffff", "\ud7ff", "'", '"', "%_", "x\0y"]
)
NUMBERS = st.sampled_from(
    [-1, 0, 1, 10, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 0.0, -0.0, 0.1, 10.0, 1e-3, 2.0**53, 9.3e18]
)
SCALARS: st.SearchStrategy[Scalar] = st.one_of(TEXTS, NUMBERS, st.booleans())
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(SCALARS, st.none(), st.sampled_from([2**63, 2**64 + 1, 10**30])),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)
PAYLOADS = st.one_of(st.none(), st.dictionaries(NAMES, VALUES, max_size=4))
LABELS = st.sampled_from([None, "a", "ab", "é", "10", "'"])
FIELDS = st.one_of(
    st.sampled_from(["key", "label"]), st.lists(NAMES, min_size=1, max_size=2).map(lambda names: field_of(tuple(names)))
)


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    """Draw a test of one field."""
    operator = draw(st.sampled_from(list(Operator)))
    if operator in (Operator.EXISTS, Operator.NOT_EXISTS):
        values: tuple[Scalar, ...] = ()
    elif operator is Operator.IN:
        values = tuple(draw(st.lists(SCALARS, min_size=1, max_size=4)))
    elif operator is Operator.STARTS_WITH:
        values = (draw(TEXTS),)
    elif operator in (Operator.EQUAL, Operator.NOT_EQUAL):
        values = (draw(SCALARS),)
    else:
        values = (draw(st.one_of(TEXTS, NUMBERS)),)
    return Comparison(draw(FIELDS), operator, values)


def conditions(least: int = 1) -> st.SearchStrategy[Condition]:
    """Return a strategy for conditions whose groups have at least so many parts."""
    return st.recursive(
        comparisons(),
        lambda inner: st.one_of(
            inner.map(Not),
            st.lists(inner, min_size=least, max_size=3).map(lambda parts: AllOf(tuple(parts))),
            st.lists(inner, min_size=least, max_size=3).map(lambda parts: AnyOf(tuple(parts))),
        ),
        max_leaves=5,
    )
