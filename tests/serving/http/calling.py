"""Call a server over HTTP, and make the same calls over gRPC."""

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from imagekin.serving.http.forms import json_path
from imagekin.serving.http.reading import fill
from imagekin.serving.http.routes import ROUTES, Route
from imagekin.serving.http.writing import to_json
from tests.serving.running import CALL_SECONDS, Running, code, details, fields

NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Answer:
    """An answer over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which must be JSON."""
        assert self.headers["content-type"].startswith("application/json"), self
        return json.loads(self.body)


class Caller:
    """Calls a server over one connection that stays open."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self._connection = (
            http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_SECONDS)
            if context is None
            else http.client.HTTPSConnection("localhost", port, timeout=CALL_SECONDS, context=context)
        )

    def __call__(
        self, verb: str, path: str, body: Any = None, kind: str = "", headers: Mapping[str, str] = NO_HEADERS
    ) -> Answer:
        """Send a request; a body that is no bytes goes as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if data is not None:
            headers = {"content-type": kind or "application/json", **headers}
        self._connection.request(verb, path, data, dict(headers))
        response = self._connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextmanager
def calling(port: int, context: ssl.SSLContext | None = None) -> Iterator[Caller]:
    """Give a caller for the length of a block."""
    caller = Caller(port, context)
    try:
        yield caller
    finally:
        caller.close()


def json_route(method: str) -> Route:
    """Return the route that takes all fields of a method's request: as JSON, or in the path and the query."""
    routes = [route for route in ROUTES if route.method.endswith(f"/{method}")]
    return next((route for route in routes if route.verb in ("POST", "PATCH")), routes[0])


def over_http(caller: Caller, method: str, request: Mapping[str, Any], headers: Mapping[str, str] = NO_HEADERS) -> Any:
    """Make a call over HTTP; return its answer, or its code, message and field."""
    route = json_route(method)
    body = dict(request)
    path = route.path.format(
        **{name: body.pop(name, "-") for name in ("name", "collection") if f"{{{name}}}" in route.path}
    )
    with_body = route.verb in ("POST", "PATCH")
    answer = caller(route.verb, f"{path}?vectors=base64", body if with_body else None, headers=headers)
    if answer.status == 200:
        return answer.json
    return (answer.json["code"], answer.json["message"], answer.json.get("field", ""))


def over_grpc(
    server: Running, method: str, request: Mapping[str, Any], metadata: Mapping[str, str] = NO_HEADERS
) -> Any:
    """Make the same call over gRPC; return its answer in the same form."""
    route = json_route(method)
    message = fill(route.new_request(), dict(request))
    call: Any = server.channel.unary_unary(route.method)
    try:
        raw = call(message.SerializeToString(), metadata=tuple(metadata.items()), timeout=CALL_SECONDS)
    except grpc.RpcError as error:
        status = details(error)
        return (code(error).name, status.message, json_path("".join(fields(status)[:1])))
    return json.loads(to_json(route.read_answer(raw), base64=True))
