"""Convert a failed call to the error class of its status code, and decide when to retry. Pure."""

import contextlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from imagekin.errors import ImagekinError, InvalidArgumentError, ResourceExhaustedError, UnavailableError, error_classes
from imagekin.v1 import common_pb2

_DETAILS_KEY = "grpc-status-details-bin"
_CLASSES = error_classes()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Policy for retries of a failed call, always within the call's timeout.

    A full queue (RESOURCE_EXHAUSTED with RetryInfo) is tried again as the server asks, however often: nothing was done.
    A full disk comes without RetryInfo and is reported at once. A server that cannot be reached (UNAVAILABLE) is tried
    again only when doing the call twice is harmless, and only `attempts` times, so that a wrong address is reported in
    seconds and not after the timeout.

    Attributes:
        attempts: tries in all of an unreachable server.
        first: seconds before the second try; doubled for each further one.
        longest: seconds, at most, between two tries.
    """

    attempts: int = 6
    first: float = 0.1
    longest: float = 2.0

    def delay(
        self,
        error: ImagekinError,
        attempt: int,
        *,
        idempotent: bool,
        left: float,
        jitter: Callable[[], float] = random.random,
    ) -> float | None:
        """Return the seconds to wait before the next attempt, None to give up.

        Args:
            error: the call's error.
            attempt: number of attempts so far, from 1.
            idempotent: the call may be done twice.
            left: seconds until the call's deadline.
            jitter: returns 0 to 1; spreads the tries of many clients.
        """
        backoff = min(self.longest, self.first * 2.0 ** min(attempt - 1, 30)) * (0.5 + 0.5 * jitter())
        if isinstance(error, ResourceExhaustedError) and error.retry_after is not None:
            # Never sooner than the server asks, and longer with each attempt.
            wait = error.retry_after + backoff
        elif isinstance(error, UnavailableError) and idempotent and attempt < self.attempts:
            wait = backoff
        else:
            return None
        return wait if wait < left else None


def item_error(message: common_pb2.ItemError) -> ImagekinError:
    """Return the error of one member of a batch."""
    return status_error(message.status)


def rpc_error(error: grpc.RpcError, target: str) -> ImagekinError:
    """Return the error of a call that gRPC ended; `target` as in `call_error`."""
    # The error of a call is a grpc.Call as well, with asyncio, too; the classes are declared separately.
    call = cast(grpc.Call, error)
    return call_error(call.code().name, call.details() or "", call.trailing_metadata(), target)


def call_error(
    code: str, message: str, details: Iterable[tuple[str, str | bytes]] | None, target: str
) -> ImagekinError:
    """Return the error of a whole call.

    Args:
        code: name of the gRPC status code.
        message: the status's text.
        details: trailing metadata, which hold the rich details.
        target: the server's address, for messages of a server that cannot be reached.
    """
    for key, value in details or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            with contextlib.suppress(DecodeError):
                return status_error(status_pb2.Status.FromString(value))
    if code == "UNAVAILABLE":
        return UnavailableError(f"no answer from {target} ({message}): {_hint(message)}")
    if code == "DEADLINE_EXCEEDED":
        message = f"no answer from {target} in time: raise the timeout, or send less at once"
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in message:
        # gRPC itself refuses a message over the server's size limit, which no retry can cure.
        return InvalidArgumentError(f"{target} takes no message of this size: {message}")
    return _error(code, message)


def _hint(message: str) -> str:
    """Return a hint for a server that cannot be reached, from gRPC's message."""
    if "andshake failed" in message:
        return "its certificate is expired, for another name, or of an authority that is not trusted here"
    if "Socket closed" in message:
        # The only sign of a server that requires TLS, or another certificate of the client.
        return "does it want TLS (--tls, or --ca FILE), or a client's certificate (--client-cert), or another one?"
    if "http1.x server" in message:
        return "this port speaks HTTP: give the one that `imagekin serve` has as --address, 50051 by default"
    if "Connection refused" in message:
        return "is `imagekin serve` running there? Without a server, give --data-dir, in Python Client.local"
    return "is `imagekin serve` running there?"


def status_error(status: status_pb2.Status) -> ImagekinError:
    """Return the error that a google.rpc.Status describes, with its field and its retry delay."""
    field, retry_after = "", None
    for detail in status.details:
        violations, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(violations) and violations.field_violations:
            field = field or violations.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after = max(0.0, retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
    names = code_pb2.Code.DESCRIPTOR.values_by_number
    code = names[status.code].name if status.code in names else "UNKNOWN"
    error = _error(code, status.message, field)
    if isinstance(error, ResourceExhaustedError):
        error.retry_after = retry_after
    return error


def _error(code: str, message: str, field: str = "") -> ImagekinError:
    return _CLASSES.get(code, ImagekinError)(message or code, field=field)
