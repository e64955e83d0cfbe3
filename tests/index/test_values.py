"""A condition means the same to all that evaluate it: see `tests/index/values.py`, whose command tries many more."""

from collections.abc import Iterator

import pytest

from imagekin.index.filters.conditions import Comparison, Condition, Not, Operator
from tests.index.values import Evaluators, evaluators, run


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluators]:
    pytest.importorskip("milvus_lite", reason="milvus-lite is one of the dev extras")
    with evaluators(tmp_path_factory.mktemp("values"), milvus=True) as made:
        yield made


def test_random_conditions(places: Evaluators) -> None:
    run(places, 60, 0)
    assert places.seen["compared with Milvus"] > 40
    assert places.seen["selected"] > 100


@pytest.mark.parametrize("field", ["key", "label", "payload.a", "payload.b"])
@pytest.mark.parametrize(
    ("operator", "values"),
    [
        (Operator.IN, ("x\0y", "a", "x")),
        (Operator.IN, ("x\0y",)),
        (Operator.EQUAL, ("x\0",)),
        (Operator.STARTS_WITH, ("x\0",)),
        (Operator.LESS, ("x\0",)),
        (Operator.IN, (1, True)),
        (Operator.IN, (0, "0", False)),
        (Operator.EQUAL, (True,)),
        (Operator.EQUAL, (1,)),
        (Operator.EQUAL, (1.0,)),
        (Operator.EQUAL, (-0.0,)),
        (Operator.EQUAL, (0,)),
        (Operator.LESS, (0.0,)),
        (Operator.GREATER_OR_EQUAL, (-0.0,)),
        (Operator.EQUAL, (2**53 + 1,)),
        (Operator.EQUAL, (2.0**53,)),
        (Operator.GREATER, (2**63 - 1,)),
        (Operator.GREATER_OR_EQUAL, (9.3e18,)),
        (Operator.IN, (2**63 - 1, 2.0**63)),
        (Operator.LESS_OR_EQUAL, (-(2**63),)),
        (Operator.EQUAL, (1e30,)),
    ],
)
def test_values_that_other_systems_confuse(
    places: Evaluators, field: str, operator: Operator, values: tuple[str | int | float | bool, ...]
) -> None:
    condition: Condition = Comparison(field, operator, values)
    places.compare(condition)
    places.compare(Not(condition))
