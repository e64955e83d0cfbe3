"""Identify a call, and end it when it fails."""

from typing import Any, NamedTuple, TypeAlias

import grpc
import grpc.aio

from imagekin.errors import UnavailableError
from imagekin.serving.observability.logs import REQUEST_ID
from imagekin.serving.transport.status import public_error, to_status

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
    """

    method: str
    request_id: str
    began: float
    metadata: Any


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
