"""The errors of the whole project, each of which owns its status code.

Every error that a user can act on is one of these. The server answers with `code`, the client turns a status back into
the same class, and the command prints the message in one line and exits with `exit_status`: one definition, three
readers. The message says what to do; it never holds a trace, and never a path of the server's.
"""

from typing import ClassVar


class ImagekinError(Exception):
    """Base of every error that a user can act on.

    Attributes:
        code: name of the gRPC status code (google.rpc.Code).
        exit_status: exit status of the `imagekin` command, 1 (failed) or 2 (wrong use).
        field: the request's field at fault, empty when it is none.
    """

    code: ClassVar[str] = "UNKNOWN"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class InvalidArgumentError(ImagekinError):
    """The request can never succeed as it is."""

    code = "INVALID_ARGUMENT"
    exit_status = 2


class ImageError(InvalidArgumentError):
    """The bytes are no image that can be served: no image at all, cut off, unsupported, or too large."""

    exit_status = 1


class NotFoundError(ImagekinError):
    """The collection, key, model or file does not exist."""

    code = "NOT_FOUND"


class AlreadyExistsError(ImagekinError):
    """There is one of that name already."""

    code = "ALREADY_EXISTS"


class FailedPreconditionError(ImagekinError):
    """The state forbids it: another embedding space, a read-only replica, a second writer."""

    code = "FAILED_PRECONDITION"


class ResourceExhaustedError(ImagekinError):
    """A queue or a disk is full.

    Attributes:
        retry_after: seconds after which to try again; None when trying again does not help, as with a full disk.
    """

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, *, field: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, field=field)
        self.retry_after = retry_after


class DeadlineExceededError(ImagekinError):
    """The caller's deadline passed before there was an answer."""

    code = "DEADLINE_EXCEEDED"


class CancelledError(ImagekinError):
    """The caller went away."""

    code = "CANCELLED"


class UnauthenticatedError(ImagekinError):
    """No token or certificate, or a wrong one."""

    code = "UNAUTHENTICATED"


class PermissionDeniedError(ImagekinError):
    """The token does not allow it."""

    code = "PERMISSION_DENIED"


class UnavailableError(ImagekinError):
    """The server cannot be reached, is starting or is going away."""

    code = "UNAVAILABLE"


class UnimplementedError(ImagekinError):
    """The contract has it, this version does not."""

    code = "UNIMPLEMENTED"


class DataLossError(ImagekinError):
    """Stored data are damaged; the message names what."""

    code = "DATA_LOSS"


class InternalError(ImagekinError):
    """A bug; the message holds an id that the server's log has too."""

    code = "INTERNAL"


def error_classes() -> dict[str, type[ImagekinError]]:
    """Return the class of each status code that one states; of several, the most general one."""
    return {kind.code: kind for kind in ImagekinError.__subclasses__() if "code" in vars(kind)}
