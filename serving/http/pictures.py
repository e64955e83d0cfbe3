"""Answer with one item's thumbnail as a JPEG file, for an `<img>` of a page."""

import hashlib
import time
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from imagekin.errors import InvalidArgumentError, NotFoundError
from imagekin.serving.fixed_answers import has_already
from imagekin.serving.http.endpoint import HttpContext, error_response
from imagekin.serving.observability.logs import REQUEST_ID, request_id
from imagekin.serving.transport.bodies import Body
from imagekin.serving.transport.call_info import CallInfo, Context
from imagekin.serving.transport.calls import Calls
from imagekin.serving.transport.status import public_error
from imagekin.v1 import collections_pb2 as pb

PATH = "/v1/collections/{collection}/thumbnail"
METHOD = "/imagekin.v1.Collections/GetThumbnails"
# A key may get another picture at any time, so a copy is asked about before each use, which costs no bytes.
_KEPT = "private, no-cache"


def thumbnail_route(calls: Calls) -> BaseRoute:
    """Return the route of one thumbnail: `GET …/thumbnail?key=KEY`."""

    async def answer(request: Request) -> Response:
        headers = request.headers
        call = CallInfo(METHOD, request_id(headers.items()), time.monotonic(), headers.items())

        async def read() -> Body:
            keys = request.query_params.getlist("key")
            if len(keys) != 1 or len(request.query_params) != 1:
                raise InvalidArgumentError("give one key, and nothing else", field="key")
            return Body(pb.GetThumbnailsRequest(collection=request.path_params["collection"], keys=keys), 0)

        try:
            found: Any = await calls.call(call, cast(Context, HttpContext(request)), read)
            picture = found.thumbnails[0]
            if not picture.jpeg:
                raise NotFoundError("there is no such item, or no picture of it", field="key")
        except Exception as error:
            return error_response(public_error(error, METHOD, call.request_id), call.request_id)
        # Of its own bytes: the same image has another thumbnail in a collection of another size.
        tag = f'"{hashlib.sha256(picture.jpeg).hexdigest()[:32]}"'
        kept = {"etag": tag, "cache-control": _KEPT, REQUEST_ID: call.request_id}
        if has_already(request, tag):
            return Response(status_code=304, headers=kept)
        return Response(picture.jpeg, media_type="image/jpeg", headers=kept)

    return Route(PATH, answer)
