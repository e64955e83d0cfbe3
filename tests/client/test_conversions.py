"""What goes into a message comes out of it again, and what cannot go in is refused in one line."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagekin.client import conversions
from imagekin.errors import InternalError, InvalidArgumentError
from imagekin.types import Item
from imagekin.v1 import collections_pb2, common_pb2, embedder_pb2, searcher_pb2

numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = st.lists(numbers, min_size=1, max_size=64).map(lambda values: np.array(values, np.float32))
texts = st.text(st.characters(codec="utf-8"), max_size=30)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
payloads = st.dictionaries(texts, json_values, max_size=4)


def over_the_wire(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


@given(vectors)
def test_a_vector_survives_the_wire_bit_for_bit(vector: np.ndarray) -> None:
    message = over_the_wire(conversions.vector_message(vector))
    assert conversions.vector_from(message.data, message.dim).tobytes() == vector.tobytes()


@given(texts, vectors, st.none() | texts, st.none() | payloads, st.none() | st.binary(min_size=32, max_size=32))
def test_an_item_survives_the_wire(
    key: str, vector: np.ndarray, label: str | None, payload: dict[str, Any] | None, content_hash: bytes | None
) -> None:
    item = Item(key, vector=vector, label=label, payload=payload, content_hash=content_hash)
    stored = conversions.stored_from(over_the_wire(conversions.item_message(item)))
    assert (stored.key, stored.label, stored.payload, stored.content_hash) == (key, label, payload, content_hash)
    assert stored.vector is not None
    assert stored.vector.tobytes() == vector.tobytes()


@given(st.lists(texts, unique=True, max_size=8), st.data())
def test_the_items_found_stand_where_their_keys_stood(keys: list[str], data: st.DataObject) -> None:
    found = [key for key in keys if data.draw(st.booleans())]
    response = collections_pb2.GetResponse(items=[common_pb2.Item(key=key) for key in reversed(found)])
    items = conversions.found_from(response, keys)
    assert [item and item.key for item in items] == [key if key in found else None for key in keys]


@pytest.mark.parametrize(
    "wrong", [[], [[1.0, 2.0]], [math.nan], [1.0, math.inf], "vector", None, [[1.0], [1.0, 2.0]], 3.0]
)
def test_what_is_no_vector_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        conversions.vector_message(wrong)


@pytest.mark.parametrize("wrong", [{"a": math.nan}, {"a": object()}, {"a": b"bytes"}])
def test_what_json_cannot_hold_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="payload"):
        conversions.payload_json(wrong)


def test_a_cut_off_vector_in_an_answer_is_an_error_and_not_a_shorter_vector() -> None:
    response = embedder_pb2.EmbedResponse(results=[embedder_pb2.EmbedResult(vector=bytes(8))], dim=3)
    with pytest.raises(InternalError, match="8 bytes where 12"):
        conversions.embeddings_from(response)


def test_an_outcome_of_a_later_version_is_a_clear_error() -> None:
    response = collections_pb2.UpsertResponse(results=[collections_pb2.UpsertResult()])
    with pytest.raises(InternalError, match="does not know"):
        conversions.outcomes_from(response)


def test_absent_and_empty_are_told_apart() -> None:
    assert conversions.neighbour_from(searcher_pb2.Neighbour(key="a")).label is None
    assert conversions.neighbour_from(searcher_pb2.Neighbour(key="a", label="")).label == ""
    assert conversions.neighbour_from(searcher_pb2.Neighbour(key="a")).payload is None
    assert conversions.neighbour_from(searcher_pb2.Neighbour(key="a", payload_json="{}")).payload == {}
    assert conversions.collection_from(collections_pb2.Collection(name="c")).recall is None
    assert conversions.collection_from(collections_pb2.Collection(name="c", recall=0.0)).recall == 0.0


def test_a_filter_is_text_or_a_tree() -> None:
    tree = common_pb2.Condition(comparison=common_pb2.Comparison(field="label"))
    assert conversions.filter_message(None) is None
    assert conversions.filter_message('label = "a"') == common_pb2.Filter(text='label = "a"')
    assert conversions.filter_message(tree) == common_pb2.Filter(condition=tree)
