"""Answer one route: make the request's message from parameters and body, call its method, and write the answer."""

import asyncio
import functools
import gzip
import math
import time
from collections.abc import Mapping
from typing import Any, cast

import msgspec
from google.protobuf.message import Message
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from imagekin.errors import (
    DeadlineExceededError,
    ImagekinError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnauthenticatedError,
    error_classes,
)
from imagekin.serving.fixed_answers import takes_gzip
from imagekin.serving.http.content import Content, Picture, Reception
from imagekin.serving.http.forms import forms, json_path
from imagekin.serving.http.reading import fill, read_parameter
from imagekin.serving.http.routes import Route
from imagekin.serving.http.writing import item_error, to_json
from imagekin.serving.observability.logs import REQUEST_ID, request_id
from imagekin.serving.transport.bodies import Body
from imagekin.serving.transport.call_info import CallInfo, Context
from imagekin.serving.transport.calls import Calls
from imagekin.serving.transport.status import public_error, to_status

TIMEOUT = "x-timeout-seconds"
VECTORS = "vectors"
_MOST_PARAMETERS = 1_000
# Answers and requests of so many bytes are converted within a millisecond or two.
_CONVERTED_HERE_BYTES = 16 * 1024
# Smaller answers fit into one packet; a higher level takes several times as long for a tenth.
_PACKED_FROM_BYTES = 1_400
_PACKING = 1
MEDIA_TYPE = "application/json"
_NOT_STORED = {"cache-control": "no-store"}


class HttpContext:
    """Context of a call over HTTP, as far as handlers use it."""

    def __init__(self, request: Request) -> None:
        self._until = None if (seconds := _timeout(request)) is None else time.monotonic() + seconds
        client = request.client
        self._peer = "http:" if client is None else f"http:{client.host}:{client.port}"
        self._metadata = tuple(request.headers.items())

    def time_remaining(self) -> float | None:
        """Return the seconds that the caller still waits; None without a limit."""
        return None if self._until is None else max(self._until - time.monotonic(), 0.0)

    def peer(self) -> str:
        """Return the caller's address, which is another one for each of its connections."""
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the headers, by their names in lower case."""
        return self._metadata


class Endpoint:
    """Answer the requests of a route.

    Args:
        route: the route.
        calls: makes the calls.
    """

    def __init__(self, route: Route, calls: Calls) -> None:
        self._route = route
        self._calls = calls
        self._forms = forms(route.descriptor.input_type)
        members = self._forms[route.member].descriptor.message_type if route.member else None
        self._member_forms = {} if members is None else forms(members)

    async def __call__(self, request: Request) -> Response:
        """Answer a request, with an error as JSON when it fails."""
        call = CallInfo(
            self._route.method, request_id(request.headers.items()), time.monotonic(), request.headers.items()
        )
        try:
            return await self._answer(request, call)
        except Exception as error:
            return error_response(public_error(error, call.method, call.request_id), call.request_id)

    async def _answer(self, request: Request, call: CallInfo) -> Response:
        base64 = _wants_base64(request.query_params)
        context = HttpContext(request)
        one = False

        async def read() -> Body:
            nonlocal one
            reception = Reception(request, self._calls.bodies, self._calls.bodies.ceiling(call.method))
            try:
                has_body = self._route.verb not in ("GET", "DELETE")
                content = await reception.content(pictures=self._route.takes_pictures) if has_body else Content()
                values, pictures = self._values(request, content)
                one = self._is_one(values, content)
                here = reception.size <= _CONVERTED_HERE_BYTES
                message = self._route.new_request()
                message = fill(message, values) if here else await asyncio.to_thread(fill, message, values)
                self._add_pictures(message, pictures)
                return Body(message, reception.size)
            except BaseException:
                self._calls.bodies.release(reception.size)
                raise

        try:
            async with asyncio.timeout(context.time_remaining()):
                answer = await self._calls.call(call, cast(Context, context), read)
        except TimeoutError:
            raise DeadlineExceededError("the caller's time is over") from None
        size = answer.ByteSize() if isinstance(answer, Message) else len(answer)
        here = size <= _CONVERTED_HERE_BYTES
        write = functools.partial(self._write, request, answer, base64, one)
        response = write() if here else await asyncio.to_thread(write)
        response.headers[REQUEST_ID] = call.request_id
        return response

    def _write(self, request: Request, answer: Message | bytes, base64: bool, one: bool) -> Response:
        """Write an answer; to a request of one picture or key, what went wrong with it is the answer's status."""
        message = self._route.read_answer(answer)
        if one:
            results: Any = getattr(message, "results", ())
            if len(results) == 1 and results[0].HasField("error"):
                written = item_error(results[0].error)
                return _written_error(error_classes()[written["code"]].http_status, written)
        body, headers = packed(request, to_json(message, base64=base64))
        return Response(body, media_type=MEDIA_TYPE, headers={**_NOT_STORED, **headers})

    def _values(self, request: Request, content: Content) -> tuple[dict[str, Any], Mapping[int, Picture]]:
        """Return the request's values, those of parameters and of the body together, and the pictures of its members.

        Raises:
            InvalidArgumentError: a parameter is unknown, given twice, or no value of its field.
        """
        if content.values is not None and not isinstance(content.values, dict):
            raise InvalidArgumentError("the body must be an object", field="request")
        values: dict[str, Any] = dict(content.values or {})
        member: dict[str, Any] = {}
        parameters: dict[str, list[str]] = {}
        pairs = [*request.query_params.multi_items(), *content.parameters]
        if len(pairs) > _MOST_PARAMETERS:
            raise InvalidArgumentError(
                f"a query has at most {_MOST_PARAMETERS:,} parameters: send JSON", field="request"
            )
        for name, text in pairs:
            parameters.setdefault(self._route.aliases.get(name, name), []).append(text)
        for name, text in request.path_params.items():
            if values.setdefault(name, text) != text:
                raise InvalidArgumentError(f"the body's {name} is another one than the path's", field=name)
        for name, texts in parameters.items():
            if name == VECTORS:
                continue
            if name in self._route.member_fields:
                member[name] = read_parameter(self._member_forms[name], texts)
            elif name not in self._forms or name in request.path_params or name == self._route.member:
                known = ", ".join((*self._route.aliases, *self._route.member_fields, *self._scalars()))
                raise InvalidArgumentError(f"no parameter {name[:80]!r} here: there is {known}", field=name[:80])
            elif name in values:
                raise InvalidArgumentError(f"{name} is given in the query and in the body", field=name)
            else:
                values[name] = read_parameter(self._forms[name], texts)
        if self._route.verb == "GET" and not member and self._route.member:
            raise InvalidArgumentError(
                f"name an item: ?key=KEY; POST takes a picture, vectors or several {self._route.member}", field="key"
            )
        if self._route.verb == "GET" and self._route.aliases and not values.keys() & set(self._route.aliases.values()):
            raise InvalidArgumentError("name the items: ?key=KEY&key=KEY; …/scroll lists all of them", field="key")
        return self._with_members(values, member, content.pictures)

    def _with_members(
        self, values: dict[str, Any], member: dict[str, Any], pictures: Any
    ) -> tuple[dict[str, Any], Mapping[int, Picture]]:
        """Add the members that parameters and pictures stand for."""
        if not member and not pictures:
            return values, {}
        if self._route.member in values:
            raise InvalidArgumentError(
                "give one member by parameters, or several in the body", field=self._route.member
            )
        if len(pictures) > 1 and "key" in member:
            raise InvalidArgumentError(
                "one key is given for several pictures: name the files by their keys", field="key"
            )
        if self._route.member == "queries" and pictures and member:
            raise InvalidArgumentError("give a picture or a key, not both", field="key")
        members = [dict(member) for _ in pictures] or [member]
        if "label" in self._route.member_fields:
            for one, picture in zip(members, pictures, strict=False):
                if not one.setdefault("key", picture.name):
                    raise InvalidArgumentError(
                        "name the item: ?key=KEY, or send a form with a file's name", field="key"
                    )
        if self._route.member != "images":
            values[self._route.member] = members
        return values, dict(enumerate(pictures))

    def _add_pictures(self, message: Message, pictures: Mapping[int, Picture]) -> None:
        members: Any = getattr(message, self._route.member) if pictures else ()
        for position, picture in pictures.items():
            if self._route.member == "images":
                members.add(data=picture.data)
            else:
                members[position].image.data = picture.data

    def _is_one(self, values: Mapping[str, Any], content: Content) -> bool:
        """Return whether the request is about one member and says so without a list."""
        given = content.values.get(self._route.member) if isinstance(content.values, dict) else None
        return bool(self._route.member) and given is None and len(content.pictures) <= 1

    def _scalars(self) -> list[str]:
        return [name for name in self._forms if name != self._route.member]


def error_response(error: ImagekinError, identity: str) -> Response:
    """Return the answer to a request that failed."""
    status = to_status(error)
    written = {"code": error.code, "message": status.message}
    if error.field:
        written["field"] = json_path(error.field)
    response = _written_error(error.http_status, written)
    if identity:
        response.headers[REQUEST_ID] = identity
    if isinstance(error, UnauthenticatedError):
        response.headers["www-authenticate"] = "Bearer"
    if isinstance(error, ResourceExhaustedError) and error.retry_after is not None:
        response.headers["retry-after"] = str(math.ceil(error.retry_after))
    return response


def packed(request: Request, body: bytes) -> tuple[bytes, dict[str, str]]:
    """Compress an answer if the caller takes gzip and it is worth it; return it with its headers."""
    if len(body) < _PACKED_FROM_BYTES or not takes_gzip(request):
        return body, {}
    return gzip.compress(body, _PACKING), {"content-encoding": "gzip", "vary": "accept-encoding"}


def _written_error(status: int, written: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(written), status, media_type=MEDIA_TYPE, headers=_NOT_STORED)


def _wants_base64(parameters: QueryParams) -> bool:
    form = parameters.get(VECTORS, "arrays")
    if form not in ("arrays", "base64"):
        raise InvalidArgumentError("vectors must be arrays or base64", field=VECTORS)
    return form == "base64"


def _timeout(request: Request) -> float | None:
    text = request.headers.get(TIMEOUT)
    if text is None:
        return None
    try:
        seconds = float(text[:40])
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidArgumentError("the time is a number of seconds above 0", field=TIMEOUT)
    return seconds
