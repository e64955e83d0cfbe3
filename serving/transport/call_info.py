"""Define a call's identity and handler, and end it when it fails."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import grpc
import grpc.aio

from imagekin.errors import ImagekinError, UnavailableError
from imagekin.serving.observability.logs import REQUEST_ID
from imagekin.serving.transport.access import Token
from imagekin.serving.transport.status import public_error, to_status
from imagekin.serving.transport.subjects import Subject

# As strings, because these classes are generic in their type stubs only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_DETAILS_KEY = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class CallInfo(NamedTuple):
    """A call in progress.

    Attributes:
        method: `/package.Service/Method`.
        request_id: the caller's own id for it, or a new one.
        began: `time.monotonic()` when it arrived.
        metadata: the caller's metadata.
        token: the caller's token, None without.
        subject: what its requests are about; None when nobody wants to know.
    """

    method: str
    request_id: str
    began: float
    metadata: Any
    token: Token | None = None
    subject: Subject | None = None


class UnaryHandler:
    """Handler of one unary call, with the attributes that gRPC reads and no more, because every call gets one."""

    __slots__ = ("unary_unary",)
    request_streaming = response_streaming = False
    request_deserializer = response_serializer = None

    def __init__(self, unary_unary: Callable[[bytes, Context], Awaitable[bytes]]) -> None:
        self.unary_unary = unary_unary


class AdmissionCheck(Protocol):
    """Refuse calls that there is no room for, before their requests are read."""

    def may_refuse(self) -> bool:
        """Return whether `refusal` should be called."""

    def refusal(self, timeout: float | None) -> ImagekinError | None:
        """Return the error for a call with that much time left in seconds, None when there is room for it."""


async def abort(context: Context, error: Exception, call: CallInfo) -> None:
    """End a call with the status of an error. Always raises."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    status = to_status(public_error(error, call.method, call.request_id))
    metadata = ((_DETAILS_KEY, status.SerializeToString()), (REQUEST_ID, call.request_id))
    await context.abort(_CODES[status.code], status.message, metadata)


def going_away() -> UnavailableError:
    """Return the error that refuses calls and ends streams when the server drains."""
    return UnavailableError("the server is going away: connect again; go on with a stream after its last answer")
