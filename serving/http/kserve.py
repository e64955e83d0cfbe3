"""KServe's v2 protocol over REST, with the binary tensors of Triton's clients; its handlers are those of gRPC."""

import asyncio
import time
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec
import numpy as np
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from imagekin.errors import InvalidArgumentError
from imagekin.kserve import inference_pb2 as pb
from imagekin.serving.http.content import Reception
from imagekin.serving.http.endpoint import MEDIA_TYPE, HttpContext
from imagekin.serving.http.reading import parse
from imagekin.serving.observability.logs import REQUEST_ID, request_id
from imagekin.serving.transport.bodies import Body
from imagekin.serving.transport.call_info import CallInfo, Context
from imagekin.serving.transport.calls import Calls
from imagekin.serving.transport.status import public_error

_SERVICE = "/inference.GRPCInferenceService/"
_HEAD_LENGTH = "inference-header-content-length"
_MOST_SIDES = 8

Read = Callable[[Request, bytes], Message]
Write = Callable[[Request, Any], Response]


def kserve_routes(calls: Calls) -> list[BaseRoute]:
    """Return the routes below /v2."""
    routes: list[BaseRoute] = []

    def add(verb: str, path: str, method: str, read: Read, write: Write) -> None:
        async def answer(request: Request) -> Response:
            return await _answer(calls, f"{_SERVICE}{method}", request, read, write)

        routes.append(Route(path, answer, methods=[verb]))

    add("GET", "/v2", "ServerMetadata", lambda *_: pb.ServerMetadataRequest(), _server)
    add("GET", "/v2/health/live", "ServerLive", lambda *_: pb.ServerLiveRequest(), _state)
    add("GET", "/v2/health/ready", "ServerReady", lambda *_: pb.ServerReadyRequest(), _state)
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        add("GET", path, "ModelMetadata", lambda request, _: pb.ModelMetadataRequest(**_names(request)), _model)
        add("GET", f"{path}/ready", "ModelReady", lambda request, _: pb.ModelReadyRequest(**_names(request)), _state)
        add("POST", f"{path}/infer", "ModelInfer", _read_infer, _write_infer)
    return routes


async def _answer(calls: Calls, method: str, request: Request, read: Read, write: Write) -> Response:
    headers = request.headers
    call = CallInfo(method, request_id(headers.items()), time.monotonic(), headers.items())

    async def body() -> Body:
        reception = Reception(request, calls.bodies, calls.bodies.ceiling(method))
        try:
            data = await reception.whole() if request.method == "POST" else b""
            message = await asyncio.to_thread(read, request, data) if data else read(request, data)
            return Body(message, reception.size)
        except BaseException:
            calls.bodies.release(reception.size)
            raise

    try:
        answer = await calls.call(call, cast(Context, HttpContext(request)), body)
        response = write(request, answer)
    except Exception as error:
        known = public_error(error, method, call.request_id)
        response = _json({"error": str(known), "code": known.code}, known.http_status)
    response.headers[REQUEST_ID] = call.request_id
    return response


def _names(request: Request) -> dict[str, str]:
    return {"name": request.path_params["model"], "version": request.path_params.get("version", "")}


def _state(request: Request, answer: Any) -> Response:
    """Answer whether the server is live or ready, as a status and as JSON."""
    name, value = next((field.name, getattr(answer, field.name)) for field in answer.DESCRIPTOR.fields)
    return _json({name: value}, 200 if value else 503)


def _server(request: Request, answer: pb.ServerMetadataResponse) -> Response:
    extensions = [*answer.extensions, "binary_tensor_data"]
    return _json({"name": answer.name, "version": answer.version, "extensions": extensions})


def _model(request: Request, answer: pb.ModelMetadataResponse) -> Response:
    def tensors(found: Any) -> list[dict[str, Any]]:
        return [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in found]

    return _json(
        {
            "name": answer.name,
            "versions": list(answer.versions),
            "platform": answer.platform,
            "inputs": tensors(answer.inputs),
            "outputs": tensors(answer.outputs),
        }
    )


def _read_infer(request: Request, data: bytes) -> pb.ModelInferRequest:
    """Read a request to infer: JSON, or JSON of a length that a header says with the tensors' bytes behind it.

    Raises:
        InvalidArgumentError: it is malformed.
    """
    length = request.headers.get(_HEAD_LENGTH)
    end = len(data) if length is None else int(length) if length.isdecimal() and len(length) < 10 else -1
    if not 0 < end <= len(data):
        raise InvalidArgumentError(f"{_HEAD_LENGTH} is none of this body", field=_HEAD_LENGTH)
    document = parse(data[:end])
    names = request.path_params
    message = pb.ModelInferRequest(model_name=names["model"], model_version=names.get("version", ""))
    message.id = _text(_member(document, "id", ""), "id")
    at = end
    for position, entry in enumerate(_list(_member(document, "inputs", []), "inputs")):
        at = _read_input(message, entry, f"inputs[{position}]", data, at)
    if at != len(data):
        raise InvalidArgumentError("the body goes on behind its tensors", field="inputs")
    for position, entry in enumerate(_list(_member(document, "outputs", []), "outputs")):
        name = _text(_member(entry, "name", ""), f"outputs[{position}].name")
        message.outputs.add(name=name)
    return message


def _read_input(message: pb.ModelInferRequest, entry: Any, path: str, data: bytes, at: int) -> int:
    """Add an input tensor and return where the next one's bytes begin."""
    datatype = _text(_member(entry, "datatype", ""), f"{path}.datatype")
    shape = _list(_member(entry, "shape", []), f"{path}.shape")
    if len(shape) > _MOST_SIDES or not all(type(side) is int and 0 < side < 2**31 for side in shape):
        raise InvalidArgumentError("a shape is an array of sides of at least 1", field=f"{path}.shape")
    tensor = message.inputs.add(name=_text(_member(entry, "name", ""), f"{path}.name"), datatype=datatype, shape=shape)
    size = _member(_member(entry, "parameters", {}), "binary_data_size", None)
    if size is not None:
        if type(size) is not int or not 0 <= size <= len(data) - at:
            raise InvalidArgumentError("binary_data_size is more than the body holds", field=f"{path}.parameters")
        message.raw_input_contents.append(data[at : at + size])
        return at + size
    values = _flat(_member(entry, "data", []), f"{path}.data")
    if datatype == "BYTES":
        tensor.contents.bytes_contents.extend(_file(value, f"{path}.data") for value in values)
    elif not all(type(value) is int and 0 <= value <= 255 for value in values):
        raise InvalidArgumentError("pixels are integers from 0 to 255", field=f"{path}.data")
    else:
        message.raw_input_contents.append(bytes(values))
    return at


def _write_infer(request: Request, answer: pb.ModelInferResponse) -> Response:
    """Write the output tensors: as arrays, or behind the JSON for a caller whose request was in that form."""
    binary = _HEAD_LENGTH in request.headers
    outputs: list[Mapping[str, Any]] = []
    raws: list[bytes] = []
    for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        entry = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if binary:
            outputs.append({**entry, "parameters": {"binary_data_size": len(raw)}})
            raws.append(raw)
        else:
            outputs.append({**entry, "data": np.frombuffer(raw, "<f4").tolist()})
    head = {"model_name": answer.model_name, "model_version": answer.model_version, "outputs": outputs}
    if answer.id:
        head["id"] = answer.id
    written = msgspec.json.encode(head)
    if not binary:
        return Response(written, media_type=MEDIA_TYPE)
    headers = {_HEAD_LENGTH: str(len(written))}
    return Response(b"".join((written, *raws)), media_type="application/octet-stream", headers=headers)


def _member(document: Any, name: str, default: Any) -> Any:
    if not isinstance(document, dict):
        raise InvalidArgumentError(f"{name} must be a member of an object", field=name)
    return document.get(name, default)


def _list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidArgumentError(f"{path} must be an array", field=path)
    return value


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{path} must be a string", field=path)
    return value


def _file(value: Any, path: str) -> bytes:
    try:
        return b64decode(_text(value, path), validate=True)
    except ValueError:
        raise InvalidArgumentError("an image file is base64 in a string", field=path) from None


def _flat(values: Any, path: str) -> list[Any]:
    """Return the elements of nested arrays, in row-major order."""
    flat = _list(values, path)
    for _ in range(_MOST_SIDES):
        if not any(isinstance(value, list) for value in flat):
            return flat
        flat = [one for value in flat for one in _list(value, path)]
    raise InvalidArgumentError("the arrays are nested too deeply", field=path)


def _json(document: Mapping[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type=MEDIA_TYPE)
