"""Wrap every call: admit it, parse its request, serialise its answer, and convert errors to statuses.

Messages are parsed here and not by gRPC, which answers INTERNAL to a malformed one; and serialised here, so that an
answer too large for the client is a clear error. When the server drains, streams are ended here, because an idle one
would delay the end for as long as its client stays. The handlers are wrapped directly: gRPC's interceptors would cost
several coroutines per call.
"""

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import grpc
import grpc.aio
from google.protobuf.message import EncodeError, Message

from imagekin.errors import (
    DeadlineExceededError,
    ImagekinError,
    InvalidArgumentError,
    ResourceExhaustedError,
)
from imagekin.serving.observability.audit import AuditLog
from imagekin.serving.observability.logs import REQUEST_ID, request_id
from imagekin.serving.observability.metrics import Metrics
from imagekin.serving.observability.tracing import Tracer
from imagekin.serving.settings import Limits
from imagekin.serving.transport.access import SCOPES, Guard, Scope
from imagekin.serving.transport.bodies import Bodies, Body, Reader
from imagekin.serving.transport.call_info import (
    AdmissionCheck,
    CallInfo,
    Context,
    Handler,
    UnaryHandler,
    abort,
    going_away,
)
from imagekin.serving.transport.callers import CALLER, Caller, CallsInProgress, caller
from imagekin.serving.transport.watch import Watch

_LAST_WRITE_SECONDS = 0.1
_UNWATCHED = contextlib.nullcontext()
_EARLY_SECONDS = 0.05
_PROBE_SECONDS = 1.0

log = logging.getLogger("imagekin.serving.calls")


class Calls(grpc.GenericRpcHandler):
    """Wrap every method of the server: services are added to it as to a server, and it is added to the server.

    Args:
        limits: ceilings; calls for health and reflection do not count as calls at one time.
        guard: authorises calls; None allows all.
        metrics: records every call but those for health and reflection; None records nothing.
        tracer: sends spans of the same calls; None sends nothing.
        readers: readers of requests in the plain form, see `imagekin.serving.transport.bodies`.

    Attributes:
        bodies: limits of request bodies.
    """

    def __init__(
        self,
        limits: Limits,
        guard: Guard | None = None,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        readers: Mapping[str, Reader] = MappingProxyType({}),
    ) -> None:
        self._guard = guard
        self._watch = Watch(metrics, tracer)
        self._max_bytes = limits.max_message_bytes
        self.bodies = Bodies(limits, readers)
        self._calls = CallsInProgress(limits.max_concurrent_calls)
        self._idle = asyncio.Event()
        self._draining = asyncio.Event()
        self._held: asyncio.Event | None = None
        self._reading: set[asyncio.Task[Any]] = set()
        self._handlers: dict[str, Any] = {}
        self._admission_checks: dict[str, AdmissionCheck] = {}
        # Methods whose handlers are called before their requests are read, and methods whose requests have no fields.
        self._unread: set[str] = set()
        self._empty: set[str] = set()

    @property
    def in_flight(self) -> int:
        """Number of calls in progress."""
        return self._calls.count

    async def drain(self) -> None:
        """Wait until no call is in flight any more; new ones fail with UNAVAILABLE.

        A stream answers the messages that it has read, then fails with UNAVAILABLE.
        """
        self._draining.set()
        for task in self._reading:
            task.cancel()
        if self._calls.count:
            await self._idle.wait()

    def close(self) -> None:
        """Stop the threads that read requests, once no call is in progress."""
        self.bodies.close()

    def write_audit(self, audit: AuditLog | None) -> None:
        """Write who asks for what, from now on; None writes nothing."""
        self._watch.audit = audit

    def check_admission(self, method: str, check: AdmissionCheck) -> None:
        """Check admission before the requests of a unary method are read."""
        self._admission_checks[method] = check

    async def call(self, call: CallInfo, context: Context, read: Callable[[], Awaitable[Body]]) -> Message | bytes:
        """Make a unary call that came otherwise than over gRPC, under the same rules.

        Args:
            call: the call; its metadata may hold the caller's `authorization`.
            context: what the handler needs to know of the caller.
            read: reads the request, once the call is let in; the body's size has been taken from `bodies`.

        Returns:
            The answer, serialised if its handler has done so.

        Raises:
            ImagekinError: the call is refused, or fails.
        """
        call = self._authorise(call)
        handler = cast(Any, self._handlers[call.method])
        with self._watch.over(call, context, streamed=False):
            answer: Message | bytes = await self._handle(handler, call, context, read)
            if (answer.ByteSize() if isinstance(answer, Message) else len(answer)) > self._max_bytes:
                raise self._too_large()
            return answer

    async def hold(self, seconds: float) -> None:
        """Hold new calls back for a while and fail them together, right before the server stops.

        A call that gRPC has received and not handed over when the server stops is answered CANCELLED, which no client
        retries. While all calls are held here, there is no such call.
        """
        self._held = asyncio.Event()
        await asyncio.sleep(seconds)
        self._held.set()

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        """Register the methods of a service; generated code calls this as on a server."""
        for name, handler in method_handlers.items():
            method = f"/{service_name}/{name}"
            self._handlers[method] = handler
            kind = getattr(cast(Any, handler).request_deserializer, "__self__", None)
            if kind is not None and not kind.DESCRIPTOR.fields:
                self._empty.add(method)
            if method in self._empty or SCOPES.get(method, Scope.ADMIN) is None:
                self._unread.add(method)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Do nothing: generated code gives the same methods in this form, too."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "Handler | None":
        """Return the method's handler, wrapped; an unknown method stays unknown."""
        handler = self._handlers.get(handler_call_details.method)
        if handler is None:
            return None
        metadata: Any = handler_call_details.invocation_metadata or ()
        call = CallInfo(handler_call_details.method, request_id(metadata), time.monotonic(), metadata)
        try:
            call = self._authorise(call)
        except ImagekinError as error:
            return self._refuse(error, call)
        if not handler.response_streaming:
            check = self._admission_check(call.method)
            if check is not None or call.method in self._unread:
                return self._wrap_unread(handler, call)
            return self._wrap_unary(handler, call)
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
        if inspect.isasyncgenfunction(inner):
            return self._wrap_stream(handler, inner, call)
        return self._wrap_writer(handler, inner, call)

    def _authorise(self, call: CallInfo) -> CallInfo:
        """Check the call's token and return the call with it, and record a call that is refused."""
        call = self._watch.begin(call)
        if self._guard is None:
            return call
        try:
            token = self._guard.check(call.method, call.metadata)
            return call if token is None else call._replace(token=token)
        except ImagekinError as error:
            self._watch.refused(call, error)
            raise

    def _admission_check(self, method: str) -> AdmissionCheck | None:
        """Return the check that may refuse a call of a method before its request is read."""
        check = self._admission_checks.get(method)
        return check if check is not None and check.may_refuse() else None

    def _refuse(self, error: ImagekinError, call: CallInfo) -> Handler:
        """Return a handler that refuses the call; a stream, whatever the method is, so that no request is read."""

        async def refuse(raw: Any, context: Context) -> AsyncIterator[bytes]:
            await abort(context, error, call)
            yield b""  # not reached: abort always raises

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _wrap_unary(self, handler: Any, call: CallInfo) -> Handler:
        async def answer(raw: bytes, context: Context) -> bytes:
            return await self._answer(handler, call, context, raw)

        return cast(Handler, UnaryHandler(answer))

    def _wrap_unread(self, handler: Any, call: CallInfo) -> Handler:
        """Wrap a unary method as a stream, so that its handler is called before its request is read."""

        async def answer(raw: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            yield await self._answer(handler, call, context, raw)

        return grpc.stream_stream_rpc_method_handler(answer)

    async def _answer(
        self,
        handler: Any,
        call: CallInfo,
        context: Context,
        raw: bytes | AsyncIterator[bytes],
    ) -> bytes:
        """Call a unary method's handler and return its answer, serialised."""

        async def read() -> Body:
            data = raw if isinstance(raw, bytes) else await self._only_message(call.method, raw)
            return await self.bodies.read(call.method, handler.request_deserializer, data)

        try:
            with self._watch.over(call, context, streamed=False):
                answer = self._serialise(handler, await self._handle(handler, call, context, read))
        except Exception as error:
            await abort(context, error, call)
            raise  # not reached: abort always raises
        context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        return answer

    async def _handle(self, handler: Any, call: CallInfo, context: Context, read: Callable[[], Awaitable[Body]]) -> Any:
        """Admit a unary call, read its request, call its handler and return the answer."""
        entered = await self._enter(call, context)
        try:
            check = self._admission_check(call.method)
            if check is not None and (refusal := check.refusal(context.time_remaining())) is not None:
                self._watch.rejected("queue_full")
                raise refusal
            body = await read()
            try:
                _check_request(call, body.message)
                return await handler.unary_unary(body.message, context)
            finally:
                self.bodies.release(body.size)
        finally:
            self._leave(entered)

    def _wrap_stream(self, handler: Any, inner: Callable[..., Any], call: CallInfo) -> Handler:
        async def requests(raw: AsyncIterator[bytes]) -> AsyncIterator[Message]:
            messages = aiter(raw)
            while (data := await self._read(messages)) is not None:
                message = await self.bodies.parse(call.method, handler.request_deserializer, data)
                _check_request(call, message)
                yield message

        async def answers(raw: Any, context: Context) -> AsyncIterator[bytes]:
            context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
            try:
                with self._watch.over(call, context, streamed=True):
                    entered = await self._enter(call, context)
                    try:
                        async with contextlib.aclosing(inner(requests(raw), context)) as responses:
                            async for response in responses:
                                yield self._serialise(handler, response)
                    finally:
                        self._leave(entered)
            except Exception as error:
                await abort(context, error, call)

        return grpc.stream_stream_rpc_method_handler(answers)

    def _wrap_writer(self, handler: Any, write: Callable[..., Awaitable[None]], call: CallInfo) -> Handler:
        """Wrap a stream that writes by itself and has no end: health's Watch."""

        async def watch(raw: AsyncIterator[bytes], context: Context) -> None:
            try:
                data = await self._only_message(call.method, raw)
                request = await self.bodies.parse(call.method, handler.request_deserializer, data)
            except ImagekinError as error:
                await abort(context, error, call)
            drain = asyncio.ensure_future(self._draining.wait())
            writer = asyncio.ensure_future(write(request, context))
            try:
                await asyncio.wait((writer, drain), return_when=asyncio.FIRST_COMPLETED)
                # The last status, NOT_SERVING, goes out before the stream ends.
                await asyncio.sleep(_LAST_WRITE_SECONDS)
            finally:
                drain.cancel()
                writer.cancel()
            await abort(context, going_away(), call)

        return grpc.stream_stream_rpc_method_handler(watch, response_serializer=handler.response_serializer)

    async def _enter(self, call: CallInfo, context: Context) -> Caller | None:
        """Count a call in, or refuse it; a call that has entered must `_leave` with what this returns."""
        if call.method.startswith("/grpc."):
            return None
        if self._draining.is_set():
            if self._held is not None:
                await self._held.wait()
            self._watch.rejected("draining")
            raise going_away()
        entered = caller(context.peer(), call.token)
        try:
            self._calls.enter(entered)
        except ResourceExhaustedError:
            self._watch.rejected("calls_full")
            raise
        CALLER.set(entered)
        return entered

    def _leave(self, entered: Caller | None) -> None:
        if entered is None:
            return
        self._calls.leave(entered)
        # No call enters once the server drains.
        if not self._calls.count and self._draining.is_set():
            self._idle.set()

    async def _read(self, raw: AsyncIterator[bytes]) -> bytes | None:
        """Read a stream's next message, None at its end."""
        if self._draining.is_set():
            raise going_away()
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._reading.add(task)
        try:
            return await anext(raw, None)
        except asyncio.CancelledError:
            if self._draining.is_set():
                raise going_away() from None
            raise
        finally:
            self._reading.discard(task)

    async def _only_message(self, method: str, raw: AsyncIterator[bytes]) -> bytes:
        """Read the one message of a call that is read as a stream; empty if the method's request has no fields.

        Raises:
            DeadlineExceededError: the method is open to everyone, and the message does not arrive in time.
        """
        if method in self._empty:
            return b""
        if method not in self._unread:
            return await anext(raw, b"")
        # gRPC accepts the largest message from everyone, so an unauthenticated caller gets little time to send one.
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                return await anext(raw, b"")
        except TimeoutError:
            raise DeadlineExceededError(f"the request did not come within {_PROBE_SECONDS:g} s") from None

    def _serialise(self, handler: Any, message: Any) -> bytes:
        """Serialise an answer, unless its handler has done so."""
        try:
            data: bytes = message if isinstance(message, bytes) else handler.response_serializer(message)
        except (EncodeError, ValueError):  # beyond what protobuf itself can hold
            raise self._too_large() from None
        if len(data) > self._max_bytes:
            raise self._too_large()
        return data

    def _too_large(self) -> InvalidArgumentError:
        return InvalidArgumentError(f"the answer is larger than {self._max_bytes} bytes: ask for less at a time")


def _check_request(call: CallInfo, message: Any) -> None:
    """Check that a call's token is for what a request is about, and note that for whoever wants to know."""
    if call.subject is not None:
        call.subject.add(message)
    if call.token is not None:
        call.token.check_request(message, call.method)
