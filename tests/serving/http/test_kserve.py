"""KServe's v2 protocol over REST: as JSON, and with the binary tensors of Triton's clients."""

import base64
import json
import struct

import numpy as np
import pytest

from tests.serving.http.calling import Answer, Caller
from tests.serving.running import Running, image, png

FILE = base64.b64encode(png(1)).decode()
BYTES = {"name": "image", "datatype": "BYTES", "shape": [1]}


def infer(call: Caller, head: object, tail: bytes = b"", model: str = "tiny") -> Answer:
    text = json.dumps(head).encode()
    headers = {"inference-header-content-length": str(len(text))} if tail else {}
    return call("POST", f"/v2/models/{model}/infer", text + tail, "application/octet-stream", headers)


def test_the_server_and_its_models_describe_themselves(call: Caller) -> None:
    assert call("GET", "/v2").json["name"] == "imagekin"
    assert call("GET", "/v2/health/live").json == {"live": True}
    assert call("GET", "/v2/health/ready").json == {"ready": True}
    assert call("GET", "/v2/models/tiny/ready").json == {"ready": True}
    model = call("GET", "/v2/models/other/versions/1").json
    assert [(one["name"], one["shape"]) for one in model["outputs"]] == [("embedding", [-1, 16]), ("logits", [-1, 3])]
    assert call("GET", "/v2/models/nobody").status == 404
    assert call("GET", "/v2/models/tiny/versions/2").status == 404


def test_a_file_is_embedded_as_over_grpc(call: Caller, server: Running) -> None:
    from imagekin.v1.embedder_pb2 import EmbedRequest

    expected = np.frombuffer(server.embedder.Embed(EmbedRequest(images=[image(1)])).results[0].vector, "<f4")
    answer = infer(call, {"id": "7", "inputs": [{**BYTES, "data": [FILE]}]}).json
    assert (answer["id"], answer["model_name"]) == ("7", "tiny")
    assert np.array_equal(np.float32(answer["outputs"][0]["data"]), expected)

    tail = struct.pack("<I", len(png(1))) + png(1)
    binary = infer(call, {"inputs": [{**BYTES, "parameters": {"binary_data_size": len(tail)}}]}, tail)
    length = int(binary.headers["inference-header-content-length"])
    (output,) = json.loads(binary.body[:length])["outputs"]
    assert output["parameters"]["binary_data_size"] == len(binary.body) - length
    assert np.array_equal(np.frombuffer(binary.body[length:], "<f4"), expected)


def test_pixels_come_nested_or_flat(call: Caller) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3))
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [2, 8, 8, 3]}
    nested = infer(call, {"inputs": [{**tensor, "data": pixels.tolist()}]}).json["outputs"][0]
    flat = infer(call, {"inputs": [{**tensor, "data": pixels.ravel().tolist()}]}).json["outputs"][0]
    assert nested == flat
    assert nested["shape"] == [2, 16]


@pytest.mark.parametrize(
    ("head", "tail", "field"),
    [
        ([], b"", "id"),
        ({}, b"", "inputs"),
        ({"inputs": {}}, b"", "inputs"),
        ({"inputs": [{**BYTES, "shape": [-1], "data": [FILE]}]}, b"", "inputs[0].shape"),
        ({"inputs": [{**BYTES, "data": ["?"]}]}, b"", "inputs[0].data"),
        ({"inputs": [{**BYTES, "datatype": "FP32", "data": [0.5]}]}, b"", "inputs[0].data"),
        ({"inputs": [{**BYTES, "parameters": {"binary_data_size": 9}}]}, b"short", "inputs[0].parameters"),
        ({"inputs": [{**BYTES, "data": [FILE]}]}, b"more", "inputs"),
        ({"inputs": [{**BYTES, "data": [FILE]}], "outputs": [{"name": "nothing"}]}, b"", "outputs"),
    ],
)
def test_what_is_wrong_is_said(call: Caller, head: object, tail: bytes, field: str) -> None:
    answer = infer(call, head, tail)
    assert answer.status == 400
    assert answer.json["code"] == "INVALID_ARGUMENT"
    assert answer.json["error"]
