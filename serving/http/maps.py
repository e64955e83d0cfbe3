"""Answer with a collection's map as a browser draws it: a short JSON object, then the positions, then the codes."""

import hashlib
import re
import struct
import time
from typing import cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from imagekin.errors import InvalidArgumentError
from imagekin.serving.fixed_answers import has_already
from imagekin.serving.http.endpoint import HttpContext, error_response
from imagekin.serving.observability.logs import REQUEST_ID, request_id
from imagekin.serving.searching.filters import read_value
from imagekin.serving.transport.bodies import Body
from imagekin.serving.transport.call_info import CallInfo, Context
from imagekin.serving.transport.calls import Calls
from imagekin.serving.transport.status import public_error
from imagekin.v1 import collections_pb2 as pb

PATH = "/v1/collections/{collection}/map/points"
METHOD = "/imagekin.v1.Collections/GetMap"
_KEPT = "private, no-cache"
# No other form may pass: the map is left out of the answer to who has it, which `has_already` must then make a 304.
_TAG = re.compile(r'(?:W/)?"(?P<mark>[^/"]*)/(?P<version>[^"]*)"')


def points_route(calls: Calls) -> BaseRoute:
    """Return the route of a map's points: `GET …/map/points?field=FIELD`."""

    async def answer(request: Request) -> Response:
        headers = request.headers
        call = CallInfo(METHOD, request_id(headers.items()), time.monotonic(), headers.items())

        async def read() -> Body:
            fields = request.query_params.getlist("field")
            if len(fields) > 1 or request.query_params.keys() - {"field"}:
                raise InvalidArgumentError("give a field, and nothing else", field="field")
            field = fields[0] if fields else ""
            # The tag is the version, with a hash of the field in front.
            given = _TAG.fullmatch(headers.get("if-none-match", ""))
            known = given["version"] if given is not None and given["mark"] == _mark(field) else ""
            collection = request.path_params["collection"]
            return Body(pb.GetMapRequest(collection=collection, field=field, known_version=known), 0)

        try:
            found = cast(pb.GetMapResponse, await calls.call(call, cast(Context, HttpContext(request)), read))
        except Exception as error:
            return error_response(public_error(error, METHOD, call.request_id), call.request_id)
        tag = f'"{_mark(request.query_params.get("field", ""))}/{found.version}"'
        kept = {"etag": tag, "cache-control": _KEPT, REQUEST_ID: call.request_id}
        if has_already(request, tag):
            return Response(status_code=304, headers=kept)
        return Response(_write(found), media_type="application/octet-stream", headers=kept)

    return Route(PATH, answer)


def _mark(field: str) -> str:
    return hashlib.sha256((field or "label").encode()).hexdigest()[:8]


def _write(found: pb.GetMapResponse) -> bytes:
    about = {
        "version": found.version,
        "count": found.count,
        "unplaced": found.unplaced,
        "values": [{"value": read_value(one.value), "count": one.count} for one in found.values],
    }
    text = msgspec.json.encode(about)
    text += b" " * (-len(text) % 4)
    return b"".join((struct.pack("<I", len(text)), text, found.positions, found.codes))
