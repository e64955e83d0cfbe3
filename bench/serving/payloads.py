"""Ready-made requests for `bench/serve.py`, one file each."""

import base64
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagekin.kserve import inference_pb2
from imagekin.v1 import common_pb2, embedder_pb2, searcher_pb2

Tensor = inference_pb2.ModelInferRequest.InferInputTensor
_BYTES = "application/octet-stream"


class Payloads:
    """Write requests that hold photos.

    Args:
        folder: where.
        photos: the photos.
    """

    def __init__(self, folder: Path, photos: Sequence[bytes]) -> None:
        self._folder = folder
        self._photos = photos

    def embed(self, count: int) -> tuple[str, ...]:
        """Return Embed requests of `count` photos each."""
        return self._write(f"embed{count}", [each.SerializeToString() for each in self._batches(count)])

    def stream(self, count: int) -> tuple[str, ...]:
        """Return messages of EmbedStream of `count` photos each."""
        messages = [embedder_pb2.EmbedStreamRequest(batch=each) for each in self._batches(count)]
        return self._write(f"stream{count}", [each.SerializeToString() for each in messages])

    def search(self) -> tuple[str, ...]:
        """Return Search requests of one photo each."""
        queries = [common_pb2.Query(image=common_pb2.Image(data=photo)) for photo in self._photos]
        requests = [searcher_pb2.SearchRequest(collection="bench", queries=[query]) for query in queries]
        return self._write("search", [each.SerializeToString() for each in requests])

    def random(self, size: int) -> tuple[str, str]:
        """Return an Embed request and a message of EmbedStream with one image of so many bytes of noise."""
        noise = np.random.default_rng(0).bytes(size)
        batch = embedder_pb2.EmbedRequest(images=[common_pb2.Image(data=noise)])
        streamed = embedder_pb2.EmbedStreamRequest(batch=batch)
        one, many = self._write("random", [batch.SerializeToString(), streamed.SerializeToString()])
        return one, many

    def peers(self) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
        """Yield for each peer its name, its method, the type of its requests, and requests of one photo each."""
        raw = self._write("raw", self._photos)
        yield "naive grpc.aio", "/bench.Naive/Embed", _BYTES, raw
        yield "mosec", "http:/inference", _BYTES, raw
        texts = [json.dumps({"image": base64.b64encode(photo).decode()}).encode() for photo in self._photos]
        yield "LitServe", "http:/predict", "application/json", self._write("json", texts)
        infer = "/inference.GRPCInferenceService/ModelInfer"
        yield "PyTriton", infer, _BYTES, self._write("triton", [_triton(photo) for photo in self._photos])

    def _batches(self, count: int) -> list[embedder_pb2.EmbedRequest]:
        whole = [*self._photos, *self._photos[:count]]
        starts = range(0, len(self._photos), count)
        return [
            embedder_pb2.EmbedRequest(images=[common_pb2.Image(data=photo) for photo in whole[start : start + count]])
            for start in starts
        ]

    def _write(self, name: str, contents: Sequence[bytes]) -> tuple[str, ...]:
        paths = [self._folder / f"{name}-{number}.bin" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        return tuple(map(str, paths))


def _triton(photo: bytes) -> bytes:
    tensor = Tensor(name="image", datatype="BYTES", shape=[1, 1])
    request = inference_pb2.ModelInferRequest(model_name="encoder", inputs=[tensor])
    request.raw_input_contents.append(struct.pack("<I", len(photo)) + photo)
    return request.SerializeToString()


def pixels_request(model: str, pixels: NDArray[np.uint8]) -> bytes:
    """Return a KServe request of pixels, uint8 [N, H, W, 3]."""
    tensor = Tensor(name="pixels", datatype="UINT8", shape=pixels.shape)
    request = inference_pb2.ModelInferRequest(model_name=model, inputs=[tensor])
    request.raw_input_contents.append(pixels.tobytes())
    return request.SerializeToString()
