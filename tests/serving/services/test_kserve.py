"""KServe v2: files and pixels, raw and typed, give the embeddings of Embed; everything else is refused by name."""

import struct
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from imagekin.encoder.runtime.session import Encoder
from imagekin.kserve import inference_pb2 as pb
from tests.serving.conftest import CLASSES
from tests.serving.running import Running, details, fields, png


@pytest.fixture(scope="module")
def encoder(model_path: Path) -> Encoder:
    return Encoder.open(model_path, device="cpu", threads=1)


def raw_bytes(*files: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


def request(datatype: str, shape: list[int], *, raw: bytes | None = None, **contents: Any) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(datatype=datatype, shape=shape)
    tensor.name = "pixels" if datatype == "UINT8" else "image"
    if contents:
        tensor.contents.CopyFrom(pb.InferTensorContents(**contents))
    raws = [] if raw is None else [raw]
    return pb.ModelInferRequest(model_name="tiny", id="7", inputs=[tensor], raw_input_contents=raws)


def embeddings(response: pb.ModelInferResponse, at: int = 0) -> NDArray[np.float32]:
    output = response.outputs[at]
    return np.frombuffer(response.raw_output_contents[at], "<f4").reshape(tuple(output.shape))


def test_server_and_models_are_live_and_described(server: Running) -> None:
    assert server.inference.ServerLive(pb.ServerLiveRequest()).live
    assert server.inference.ServerReady(pb.ServerReadyRequest()).ready
    assert server.inference.ModelReady(pb.ModelReadyRequest(name="tiny", version="1")).ready
    assert server.inference.ServerMetadata(pb.ServerMetadataRequest()).name == "imagekin"
    tiny = server.inference.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
    assert [(each.name, each.datatype, list(each.shape)) for each in tiny.inputs] == [
        ("image", "BYTES", [-1]),
        ("pixels", "UINT8", [-1, 8, 8, 3]),
    ]
    assert [(each.name, each.datatype, list(each.shape)) for each in tiny.outputs] == [("embedding", "FP32", [-1, 16])]
    other = server.inference.ModelMetadata(pb.ModelMetadataRequest(name="other"))
    assert [each.name for each in other.outputs] == ["embedding", "logits"]


@pytest.mark.parametrize(("name", "version"), [("none", ""), ("tiny", "2")])
def test_an_unknown_model_is_not_found(server: Running, name: str, version: str) -> None:
    for call in (
        lambda: server.inference.ModelReady(pb.ModelReadyRequest(name=name, version=version)),
        lambda: server.inference.ModelMetadata(pb.ModelMetadataRequest(name=name, version=version)),
        lambda: server.inference.ModelInfer(pb.ModelInferRequest(model_name=name, model_version=version)),
    ):
        with pytest.raises(grpc.RpcError) as failed:
            call()
        assert details(failed.value).code == grpc.StatusCode.NOT_FOUND.value[0]


def test_every_form_of_an_image_gives_the_same_embedding(server: Running, encoder: Encoder) -> None:
    files = [png(1), png(2)]
    pixels = np.stack([encoder.load_pixels(file) for file in files])
    expected = encoder.embed(files)
    for form in (
        request("BYTES", [2], raw=raw_bytes(*files)),
        request("BYTES", [2, 1], raw=raw_bytes(*files)),
        request("BYTES", [2], bytes_contents=files),
        request("UINT8", [2, 8, 8, 3], raw=pixels.tobytes()),
        request("UINT8", [2, 8, 8, 3], uint_contents=pixels.ravel().tolist()),
    ):
        response = server.inference.ModelInfer(form)
        assert (response.model_name, response.model_version, response.id) == ("tiny", "1", "7")
        assert (response.outputs[0].name, response.outputs[0].datatype) == ("embedding", "FP32")
        np.testing.assert_allclose(embeddings(response), expected, atol=1e-6)


def test_logits_come_from_a_model_that_has_them(server: Running) -> None:
    form = request("BYTES", [1], raw=raw_bytes(png(1)))
    form.model_name = "other"
    both = server.inference.ModelInfer(form)
    assert [output.name for output in both.outputs] == ["embedding", "logits"]
    assert embeddings(both, 1).shape == (1, len(CLASSES))
    form.outputs.add(name="logits")
    only = server.inference.ModelInfer(form)
    np.testing.assert_allclose(embeddings(only), embeddings(both, 1), atol=1e-6)


def named(name: str) -> pb.ModelInferRequest:
    form = request("BYTES", [1], raw=raw_bytes(b"a"))
    form.inputs[0].name = name
    return form


def shared(side: str) -> pb.ModelInferRequest:
    """Return a request of a client of Triton whose tensors lie in shared memory."""
    form = request("BYTES", [1])
    form.outputs.add(name="embedding")
    tensor = form.inputs[0] if side == "inputs" else form.outputs[0]
    tensor.parameters["shared_memory_region"].string_param = "mine"
    return form


BAD = [
    (request("BYTES", [1], raw=raw_bytes(b"no image")), "inputs[0][0]"),
    (request("BYTES", [2], raw=raw_bytes(b"one")), "inputs"),
    (request("BYTES", [1], raw=b"\x05\0\0\0ab"), "raw_input_contents"),
    (request("BYTES", [1], raw=b"\x05"), "raw_input_contents"),
    (request("BYTES", [1], raw=b"\0\0\0\0" * 300), "raw_input_contents"),
    (request("BYTES", [0], raw=b""), "inputs[0].shape"),
    (request("BYTES", [-1], raw=b""), "inputs[0].shape"),
    (request("BYTES", [1, 2], raw=raw_bytes(b"a", b"b")), "inputs[0].shape"),
    (request("BYTES", [1]), "inputs"),
    (request("UINT8", [1, 8, 8], raw=b"\0" * 64), "inputs[0].shape"),
    (request("UINT8", [1, 9, 8, 3], raw=b"\0" * 216), "inputs[0].shape"),
    (request("UINT8", [2**40, 8, 8, 3], raw=b"\0" * 192), "inputs[0].shape"),
    (request("UINT8", [1, 8, 8, 3], raw=b"\0" * 191), "inputs"),
    (request("UINT8", [1, 8, 8, 3], uint_contents=[256] * 192), "inputs[0].contents"),
    (request("FP32", [1, 8, 8, 3], raw=b"\0" * 768), "inputs[0].datatype"),
    (request("BYTES", [1], raw=raw_bytes(b"a"), bytes_contents=[b"a"]), "raw_input_contents"),
    (pb.ModelInferRequest(model_name="tiny"), "inputs"),
    (named("picture"), "inputs[0].name"),
    (named(""), "inputs[0].name"),
    (named("pixels"), "inputs[0].datatype"),
    (shared("inputs"), "inputs[0].parameters"),
    (shared("outputs"), "outputs[0].parameters"),
]


@pytest.mark.parametrize(("form", "field"), BAD)
def test_a_wrong_tensor_is_refused_by_name(server: Running, form: pb.ModelInferRequest, field: str) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        server.inference.ModelInfer(form)
    status = details(failed.value)
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert fields(status) == [field]


def test_an_output_that_is_not_there_is_refused(server: Running) -> None:
    form = request("BYTES", [1], raw=raw_bytes(png(1)))
    form.outputs.add(name="logits")
    with pytest.raises(grpc.RpcError) as failed:
        server.inference.ModelInfer(form)
    assert fields(details(failed.value)) == ["outputs"]
