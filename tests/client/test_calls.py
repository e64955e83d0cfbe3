"""Series of any length are cut within the limits, and every member gets its own answer."""

from typing import Any

import pytest
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from imagekin.client import calls
from imagekin.errors import ImageError, ImagekinError, InternalError, InvalidArgumentError
from imagekin.v1 import collections_pb2, common_pb2, embedder_pb2, searcher_pb2

SERIES = calls.embed_series("")
MODULES = (embedder_pb2, searcher_pb2, collections_pb2)


def every_call() -> list[calls.Call[Any, Any]]:
    return [value for value in vars(calls).values() if isinstance(value, calls.Call) and value is not calls.HEALTH]


@pytest.mark.parametrize("call", every_call(), ids=lambda call: call.path)
def test_a_call_is_one_of_the_contract(call: calls.Call[Any, Any]) -> None:
    service, method = call.path.removeprefix("/").split("/")
    services = {one.full_name: one for module in MODULES for one in module.DESCRIPTOR.services_by_name.values()}
    described = services[service].methods_by_name[method]
    assert described.input_type is call.request.DESCRIPTOR
    assert described.output_type is call.response.DESCRIPTOR


@pytest.mark.parametrize("status", health_pb2.HealthCheckResponse.ServingStatus.values())
def test_the_health_check_is_the_standard_one_on_the_wire(status: int) -> None:
    service = health_pb2.DESCRIPTOR.services_by_name["Health"]
    assert calls.HEALTH.path == f"/{service.full_name}/Check"
    assert calls.HEALTH.request().SerializeToString() == health_pb2.HealthCheckRequest().SerializeToString()
    answer = calls.HEALTH.response.FromString(health_pb2.HealthCheckResponse(status=status).SerializeToString())
    assert (answer.value == calls.SERVING) == (status == health_pb2.HealthCheckResponse.SERVING)


members = st.lists(st.binary(max_size=40) | st.just(ImageError("unreadable")), max_size=60)


@given(members, st.integers(1, 10), st.integers(1, 200))
def test_batches_hold_all_members_in_order_within_the_limits(
    images: list[bytes | ImageError], items: int, size: int
) -> None:
    batches = list(calls.cut(SERIES, images, calls.MessageLimits(items, size)))
    slots = [slot for batch in batches for slot in batch.slots]
    assert [slot if isinstance(slot, ImagekinError) else slot.data for slot in slots] == images
    assert [batch.is_last for batch in batches] == [False] * (len(batches) - 1) + [True] * (len(batches) > 0)
    for batch in batches:
        assert 1 <= len(batch.slots) <= items
        assert len(batch.parts) == 1 or sum(part.ByteSize() for part in batch.parts) <= size


@given(members)
def test_answers_find_the_places_of_their_members(images: list[bytes | ImageError]) -> None:
    for batch in calls.cut(SERIES, images, calls.MessageLimits(7, 1000)):
        placed = calls.placed(batch, [part.data for part in batch.parts])
        assert placed == [slot if isinstance(slot, ImagekinError) else slot.data for slot in batch.slots]


def test_an_answer_of_another_length_is_not_guessed_at() -> None:
    batch = calls.Batch([common_pb2.Image(), common_pb2.Image()])
    with pytest.raises(InternalError, match="1 of 2"):
        calls.placed(batch, [1])


def test_a_located_error_keeps_its_class_and_names_its_place() -> None:
    error = ImageError("cut off", field="images")
    located = calls.located(error, "images", 1)
    assert (type(located), str(located), located.field) == (ImageError, "images[1]: cut off", "images")
    assert str(error) == "cut off"


def test_keys_are_cut_into_pages() -> None:
    assert [len(page) for page in calls.pages(map(str, range(2500)))] == [1000, 1000, 500]
    assert calls.pages("one") == [["one"]]
    with pytest.raises(InvalidArgumentError):
        calls.delete_requests("c", ["a"], 'label = "b"')
