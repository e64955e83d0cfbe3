"""Define the project's errors and their status codes.

Every error that a user can act on is one of these. The server answers with `code`, over HTTP also with `http_status`;
the client converts a status back to the same class, and the command prints the message in one line and exits with
`exit_status`. The message says what to do; it never contains a traceback or a path of the server.
"""

from typing import ClassVar


class ImagekinError(Exception):
    """Base class of every error that a user can act on.

    Attributes:
        code: name of the gRPC status code (google.rpc.Code).
        http_status: status of an answer over HTTP.
        exit_status: exit status of the `imagekin` command, 1 (failed) or 2 (wrong use).
        field: the invalid field of the request, empty for none.
    """

    code: ClassVar[str] = "UNKNOWN"
    http_status: ClassVar[int] = 500
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class InvalidArgumentError(ImagekinError):
    """The request is invalid, and cannot succeed unchanged."""

    code = "INVALID_ARGUMENT"
    http_status = 400
    exit_status = 2


class ImageError(InvalidArgumentError):
    """The bytes are not a usable image: no image at all, truncated, unsupported, or too large."""

    exit_status = 1


class NotFoundError(ImagekinError):
    """The collection, key, model or file does not exist."""

    code = "NOT_FOUND"
    http_status = 404


class AlreadyExistsError(ImagekinError):
    """Something of that name exists already."""

    code = "ALREADY_EXISTS"
    http_status = 409


class FailedPreconditionError(ImagekinError):
    """The current state does not allow it: another embedding space, a read-only replica, a second writer."""

    code = "FAILED_PRECONDITION"
    http_status = 400


class ResourceExhaustedError(ImagekinError):
    """A queue or a disk is full.

    Attributes:
        retry_after: seconds after which to try again; None when that does not help, as with a full disk.
    """

    code = "RESOURCE_EXHAUSTED"
    http_status = 429

    def __init__(self, message: str, *, field: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, field=field)
        self.retry_after = retry_after


class DeadlineExceededError(ImagekinError):
    """The caller's deadline passed before the answer was ready."""

    code = "DEADLINE_EXCEEDED"
    http_status = 504


class CancelledError(ImagekinError):
    """The caller cancelled the request."""

    code = "CANCELLED"
    http_status = 499


class UnauthenticatedError(ImagekinError):
    """The token or certificate is missing or wrong."""

    code = "UNAUTHENTICATED"
    http_status = 401


class PermissionDeniedError(ImagekinError):
    """The token does not allow it."""

    code = "PERMISSION_DENIED"
    http_status = 403


class UnavailableError(ImagekinError):
    """The server cannot be reached, is starting or is shutting down."""

    code = "UNAVAILABLE"
    http_status = 503


class UnimplementedError(ImagekinError):
    """The contract defines the method, but this version does not implement it."""

    code = "UNIMPLEMENTED"
    http_status = 501


class DataLossError(ImagekinError):
    """Stored data are damaged; the message names them."""

    code = "DATA_LOSS"


class InternalError(ImagekinError):
    """An unexpected error, a bug; the message contains an id that is also in the server's log."""

    code = "INTERNAL"


def error_classes() -> dict[str, type[ImagekinError]]:
    """Return the error class of each status code; of several, the most general one."""
    return {kind.code: kind for kind in ImagekinError.__subclasses__() if "code" in vars(kind)}
