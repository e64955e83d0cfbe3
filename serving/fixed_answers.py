"""Answer with what stays the same while the server runs, and say nothing to a caller that has it already."""

import gzip
import hashlib
import re
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

_CHECKED = {"cache-control": "no-cache", "vary": "accept-encoding"}
_WEAK = "W/"
# The weight of what the caller does not take (RFC 9110, 12.4.2).
_NEVER = re.compile(r"q=0(\.0*)?")


class FixedAnswer:
    """A file that is answered as it is, or packed, from memory; its callers check on every visit that it is the same.

    Args:
        body: its bytes.
        kind: its media type.
    """

    def __init__(self, body: bytes, kind: str) -> None:
        # A strong tag would say that the packed bytes are the plain ones (RFC 9110, 8.8.1).
        self.tag = f'{_WEAK}"{hashlib.sha256(body).hexdigest()[:32]}"'
        self._kind = kind
        self._plain = body
        self._packed = gzip.compress(body, 9, mtime=0)

    def to(self, request: Request, more: Mapping[str, str] | None = None) -> Response:
        """Return the answer to a request, with further headers."""
        headers = {**_CHECKED, "etag": self.tag, **(more or {})}
        if has_already(request, self.tag):
            return Response(status_code=304, headers=headers)
        if takes_gzip(request):
            return Response(self._packed, headers={**headers, "content-encoding": "gzip"}, media_type=self._kind)
        return Response(self._plain, headers=headers, media_type=self._kind)


def has_already(request: Request, tag: str) -> bool:
    """Return whether the caller has what an ETag stands for (`If-None-Match`, RFC 9110).

    Tags are compared weakly, as a proxy weakens the tag of what it packs.
    """
    given = request.headers.get("if-none-match", "")
    known = [one.strip().removeprefix(_WEAK) for one in given.split(",")]
    return given.strip() == "*" or tag.removeprefix(_WEAK) in known


def takes_gzip(request: Request) -> bool:
    """Return whether the caller can unpack gzip."""
    for one in request.headers.get("accept-encoding", "").lower().split(","):
        name, _, weight = one.partition(";")
        if name.strip() == "gzip":
            return _NEVER.fullmatch(weight.strip()) is None
    return False
