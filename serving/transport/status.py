"""Convert errors to google.rpc.Status, and decide what a caller sees of a failure.

An `ImagekinError` was written for users and keeps its code and message. Any other error is a bug: the caller gets
INTERNAL and an id, and the log gets the traceback under the same id.
"""

import logging
import secrets

from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2, status_pb2

from imagekin.errors import ImagekinError, InternalError, ResourceExhaustedError
from imagekin.v1 import common_pb2

log = logging.getLogger("imagekin.serving")

# A status travels in HTTP/2 headers, which peers cap at 8 KiB, once percent-encoded and once more in base64.
_MAX_MESSAGE = 500
_MAX_FIELD = 200


def to_status(error: ImagekinError) -> status_pb2.Status:
    """Convert an error to a status: BadRequest details when a field is at fault, RetryInfo when trying again helps."""
    message = str(error)
    if len(message) > _MAX_MESSAGE:
        message = message[: _MAX_MESSAGE - 1] + "…"
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=message)
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field[:_MAX_FIELD], description=message)
        _attach(status, error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, ResourceExhaustedError) and error.retry_after is not None:
        delay = error_details_pb2.RetryInfo()
        delay.retry_delay.FromNanoseconds(round(max(error.retry_after, 0.0) * 1e9))
        _attach(status, delay)
    return status


def item_error(error: ImagekinError) -> common_pb2.ItemError:
    """Convert an error to the answer to one member of a batch."""
    return common_pb2.ItemError(status=to_status(error))


def public_error(error: BaseException, where: str, request_id: str = "") -> ImagekinError:
    """Return the error that the caller sees, and log what the caller does not see.

    Args:
        error: whatever was raised.
        where: the call, for the log.
        request_id: the call's id, which becomes the error's id; empty makes one.
    """
    if isinstance(error, ImagekinError):
        return error
    identity = request_id or secrets.token_hex(8)
    log.error(
        "%s failed, error id %s", where, identity, exc_info=error, extra={"request_id": identity, "method": where}
    )
    return InternalError(f"internal error {identity}: the server's log has more under this id")


def _attach(status: status_pb2.Status, detail: error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    status.details.append(packed)
