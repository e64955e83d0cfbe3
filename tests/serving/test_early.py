"""A call for which there is no room is refused before its request is read; one that is let in is answered as ever."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status  # type: ignore[import-untyped]

from imagekin.errors import ImagekinError, ResourceExhaustedError
from imagekin.serving.settings import Limits
from imagekin.serving.transport.calls import Calls

METHOD = "/imagekin.test.Echo/Echo"


class Gate:
    """An admission check that refuses calls with less than ten seconds left."""

    def __init__(self) -> None:
        self.asked: list[float | None] = []

    def may_refuse(self) -> bool:
        return True

    def refusal(self, timeout: float | None) -> ImagekinError | None:
        self.asked.append(timeout)
        return ResourceExhaustedError("come back", retry_after=1.5) if timeout is None or timeout < 10 else None


async def _served(call: Any, gate: Gate) -> list[bytes]:
    read: list[bytes] = []

    async def echo(request: bytes, context: Any) -> bytes:
        return request

    def parse(data: bytes) -> bytes:
        read.append(data)
        return data

    calls = Calls(Limits(max_message_bytes=1000, max_concurrent_calls=10))
    handler = grpc.unary_unary_rpc_method_handler(echo, request_deserializer=parse, response_serializer=bytes)
    calls.add_registered_method_handlers("imagekin.test.Echo", {"Echo": handler})
    calls.check_admission(METHOD, gate)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((calls,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await call(channel.unary_unary(METHOD))
    await server.stop(0)
    assert calls.in_flight == 0
    return read


def test_a_refused_call_has_not_been_read_and_says_when_to_come_back() -> None:
    async def call(echo: Any) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await echo(b"x" * 100, timeout=5)
        status = rpc_status.from_call(refused.value)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        delay = error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(delay)
        assert delay.retry_delay.ToTimedelta().total_seconds() == 1.5

    gate = Gate()
    assert asyncio.run(_served(call, gate)) == []
    (left,) = gate.asked
    assert left is not None
    assert 0 < left <= 5.01  # gRPC sends such a time limit in hundredths of a second, rounded up


def test_a_call_that_is_let_in_is_answered() -> None:
    async def call(echo: Any) -> None:
        answering = echo(b"hello", timeout=60)
        assert await answering == b"hello"
        assert "x-request-id" in dict(await answering.trailing_metadata())

    assert asyncio.run(_served(call, Gate())) == [b"hello"]
