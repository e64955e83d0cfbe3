"""Turns a gRPC status into the error class that owns its code, and says whether and when to try again. Pure."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from google.rpc import code_pb2, error_details_pb2, status_pb2

from imagekin.errors import ImagekinError, InvalidArgumentError, ResourceExhaustedError, UnavailableError, error_classes
from imagekin.v1 import common_pb2

_DETAILS_KEY = "grpc-status-details-bin"
_CLASSES = error_classes()


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call.

    Attributes:
        error: what the caller is told.
        retry_after: seconds after which the server asks to try again; None when it does not ask.
    """

    error: ImagekinError
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed call is tried again; always within the call's timeout.

    A full queue (RESOURCE_EXHAUSTED) is retried as the server asks, however often: nothing was done. A server that
    cannot be reached (UNAVAILABLE) is retried only when doing the call twice is harmless, and only `attempts` times, so
    that a wrong address is reported in seconds and not after the timeout.

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
        failure: Failure,
        attempt: int,
        *,
        idempotent: bool,
        left: float,
        jitter: Callable[[], float] = random.random,
    ) -> float | None:
        """Return the seconds to wait before the next try, None to give up.

        Args:
            failure: what happened.
            attempt: how many tries there were, from 1.
            idempotent: whether the call may be done twice.
            left: seconds until the call's deadline.
            jitter: returns 0 to 1; spreads the tries of many clients.
        """
        backoff = min(self.longest, self.first * 2.0 ** min(attempt - 1, 30)) * (0.5 + 0.5 * jitter())
        if isinstance(failure.error, ResourceExhaustedError) and failure.retry_after is not None:
            # Never sooner than asked; the more tries, the further apart.
            wait = failure.retry_after + backoff
        elif isinstance(failure.error, UnavailableError) and idempotent and attempt < self.attempts:
            wait = backoff
        else:
            return None
        return wait if wait < left else None


def item_error(message: common_pb2.ItemError) -> ImagekinError:
    """Return the error of one member of a batch."""
    return status_failure(message.status).error


def call_failure(code: str, message: str, trailing: Iterable[tuple[str, str | bytes]] | None, target: str) -> Failure:
    """Return the failure of a whole call.

    Args:
        code: name of the gRPC status code.
        message: the status's text.
        trailing: trailing metadata, which hold the rich details.
        target: the server's address, for messages of a server that cannot be reached.
    """
    for key, value in trailing or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            return status_failure(status_pb2.Status.FromString(value))
    if code == "UNAVAILABLE":
        return Failure(UnavailableError(f"no answer from {target} ({message}): {_hint(message)}"))
    if code == "DEADLINE_EXCEEDED":
        message = f"no answer from {target} in time: raise the timeout, or send less at once"
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in message:
        # gRPC itself refuses a message over the server's size limit, which no retry can cure.
        return Failure(InvalidArgumentError(f"{target} takes no message of this size: {message}"))
    return Failure(_error(code, message))


def _hint(message: str) -> str:
    """Return what to do about a server that cannot be reached, by gRPC's words."""
    if "andshake failed" in message:
        return "its certificate is expired, for another name, or of an authority that is not trusted here"
    if "Socket closed" in message:
        # All that is heard of a server that wants TLS, or another certificate of ours.
        return "does it want TLS, or a client's certificate, or another one?"
    return "is `imagekin serve` running there?"


def status_failure(status: status_pb2.Status) -> Failure:
    """Return the failure that a google.rpc.Status describes, with its field and its retry delay."""
    field, retry_after = "", None
    for detail in status.details:
        violations, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(violations) and violations.field_violations:
            field = field or violations.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    names = code_pb2.Code.DESCRIPTOR.values_by_number
    code = names[status.code].name if status.code in names else "UNKNOWN"
    error = _error(code, status.message, field)
    if isinstance(error, ResourceExhaustedError) and retry_after is not None:
        error.retry_after = retry_after
    return Failure(error, retry_after)


def _error(code: str, message: str, field: str = "") -> ImagekinError:
    return _CLASSES.get(code, ImagekinError)(message or code, field=field)
