"""A request's body is bounded before it costs memory, and counted before it costs time."""

import asyncio
import gzip
import tracemalloc

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from imagekin.errors import InvalidArgumentError, ResourceExhaustedError
from imagekin.serving.settings import Limits
from imagekin.serving.transport.bodies import Bodies, check_fields, unpack
from imagekin.serving.transport.callers import CALLER, Caller
from imagekin.v1 import collections_pb2, common_pb2, searcher_pb2

COUNT = "/imagekin.v1.Collections/Count"
UPSERT = "/imagekin.v1.Collections/Upsert"
LIVE = "/inference.GRPCInferenceService/ServerLive"
Value, Comparison, Condition = common_pb2.Value, common_pb2.Comparison, common_pb2.Condition


def parse(method: str, message: Message, data: bytes) -> Message:
    """Return what is read of a body."""
    bodies = Bodies(Limits())
    try:
        found: Message = asyncio.run(bodies.parse(method, type(message).FromString, data))
        return found
    finally:
        bodies.close()


def test_probes_get_a_few_bytes_and_bulk_what_is_set() -> None:
    bodies = Bodies(Limits(max_message_bytes=3_000_000))
    assert bodies.ceiling(LIVE) == bodies.ceiling("/grpc.health.v1.Health/Check") == 64 * 1024
    assert bodies.ceiling("/of.Nobody/Knows") == 64 * 1024
    assert bodies.ceiling(COUNT) == 2**20
    assert bodies.ceiling(UPSERT) == bodies.ceiling("/imagekin.v1.Collections/Get") == 3_000_000
    bodies.close()


@given(st.binary(max_size=2000))
def test_what_was_packed_is_unpacked(data: bytes) -> None:
    assert unpack(gzip.compress(data), 2000) == data


def test_a_flood_of_zeros_makes_no_more_than_its_limit() -> None:
    packed = gzip.compress(bytes(200 * 2**20), 1)
    tracemalloc.start()
    with pytest.raises(InvalidArgumentError, match="over the limit of 65536"):
        unpack(packed, 64 * 1024)
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()
    with pytest.raises(InvalidArgumentError, match="packed to less than 1/32"):
        unpack(packed, 64 * 2**20)


@pytest.mark.parametrize(
    "data",
    [b"\x1f\x8b", gzip.compress(b"a" * 50)[:-1], gzip.compress(b"a") + b"b", b"\x1f\x8b" + b"x" * 50],
    ids=["start", "short", "more", "noise"],  # gzip writes the time: every process would have names of its own
)
def test_damaged_gzip_is_a_clear_error(data: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="no valid gzip"):
        unpack(data, 1000)


def test_a_packed_request_is_read_once() -> None:
    wanted = collections_pb2.CountRequest(collection="shop")
    data = wanted.SerializeToString()
    assert parse(COUNT, wanted, gzip.compress(data)) == wanted
    with pytest.raises(InvalidArgumentError, match="no valid protobuf"):
        parse(COUNT, wanted, gzip.compress(gzip.compress(data)))


def test_a_request_over_its_methods_ceiling_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="over the limit of 1048576"):
        parse(COUNT, collections_pb2.CountRequest(), bytes(2**20 + 1))


def filtered(parts: int, values: int = 1) -> common_pb2.Filter:
    """Return a flat tree of comparisons."""
    one = Comparison(field="label", operator=Comparison.Operator.OPERATOR_IN, values=[Value(int_value=1)] * values)
    whole = common_pb2.Filter()
    whole.condition.all.parts.extend([Condition(comparison=one)] * parts)
    return whole


def test_half_a_million_comparisons_are_not_parsed() -> None:
    request = searcher_pb2.SearchRequest(collection="shop", filter=filtered(500_000))
    with pytest.raises(InvalidArgumentError, match="at most 50,000 fields"):
        parse("/imagekin.v1.Searcher/Search", request, request.SerializeToString())


@given(st.integers(0, 30), st.integers(0, 30))
def test_fields_are_counted_in_every_message(parts: int, values: int) -> None:
    request = collections_pb2.CountRequest(collection="shop", filter=filtered(parts, values))
    # The collection, filter, condition and all of its parts; a part, its comparison, field and operator; a value's two.
    fields = 4 + parts * (4 + 2 * values)
    data, kind = request.SerializeToString(), collections_pb2.CountRequest.DESCRIPTOR
    check_fields(data, kind, fields)
    with pytest.raises(InvalidArgumentError):
        check_fields(data, kind, fields - 1)


@given(st.binary(max_size=200))
def test_counting_ends_for_any_bytes(data: bytes) -> None:
    check_fields(data, collections_pb2.UpsertRequest.DESCRIPTOR, 1000)


def test_all_requests_in_work_have_a_ceiling_together_and_a_lone_one_always_has_room() -> None:
    async def scenario() -> None:
        bodies = Bodies(Limits(max_held_bytes=120_000))
        request = collections_pb2.UpsertRequest(collection="x" * 80_000)
        data = request.SerializeToString()

        async def read(data: bytes) -> int:
            return (await bodies.read(UPSERT, collections_pb2.UpsertRequest.FromString, data)).size

        first = await read(data)
        with pytest.raises(ResourceExhaustedError, match="too large together"):
            await read(data)
        # Packed it would fit.
        with pytest.raises(ResourceExhaustedError, match="too large together"):
            await read(gzip.compress(data))
        bodies.release(first)
        with pytest.raises(InvalidArgumentError):
            await read(b"\xff" * 90_000)
        assert await read(data) == len(data)
        bodies.close()

    asyncio.run(scenario())


def test_one_caller_leaves_room_for_the_requests_of_others() -> None:
    bodies = Bodies(Limits(max_held_bytes=100_000))

    def take(name: str, size: int) -> None:
        CALLER.set(Caller(name))
        bodies.take(size)

    def release(name: str, size: int) -> None:
        CALLER.set(Caller(name))
        bodies.release(size)

    take("greedy", 50_000)
    with pytest.raises(ResourceExhaustedError, match="your requests"):
        take("greedy", 30_000)
    take("small", 30_000)
    release("greedy", 50_000)
    take("greedy", 60_000)
    with pytest.raises(ResourceExhaustedError, match="the requests in flight"):
        take("small", 20_000)
    release("small", 30_000)
    release("greedy", 60_000)
    # A single request always has room.
    take("greedy", 200_000)
    bodies.close()
