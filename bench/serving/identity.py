"""Servers to measure the cost of the service alone: imagekin with a model that does nothing, and a bare grpc.aio echo.

    python -m bench.serving.identity imagekin|echo PORT_FILE [ANSWER_BYTES]

Both take any bytes and answer with as many bytes as they are told. The echo is what a reader would write first: raw
bytes in, raw bytes out, no message parsed, no limit checked, no thread.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from imagekin import files
from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.encoder.metadata import Metadata, Preprocess
from imagekin.encoder.runtime.session import Outputs
from imagekin.machine import cores
from imagekin.serving import server
from imagekin.serving.embedding.models import Models, ServedModel
from imagekin.serving.embedding.pipeline import Pipeline
from imagekin.serving.observability.metrics import Metrics
from imagekin.serving.settings import Settings
from imagekin.v1 import embedder_pb2

EMBED = "/imagekin.v1.Embedder/Embed"
STREAM = "/imagekin.v1.Embedder/EmbedStream"


class Identity:
    """A model that neither decodes nor computes.

    Args:
        dim: components of its answers.
    """

    def __init__(self, dim: int) -> None:
        self.metadata = Metadata("identity", dim, Preprocess(1, 1))
        self._pixels = np.zeros((1, 1, 3), np.uint8)
        self._rows = np.full((256, dim), dim**-0.5, np.float32)

    def load_pixels(self, data: bytes | memoryview, limits: DecodeLimits) -> NDArray[np.uint8]:
        """Return one pixel."""
        return self._pixels

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return the same embedding for each."""
        return Outputs(self._rows[: len(pixels)], None)


def serve_imagekin(port_file: Path, dim: int) -> None:
    """Serve the identity model as `imagekin serve` serves any."""

    def load(settings: Settings, metrics: Metrics | None = None) -> Models:
        runner = Identity(dim)
        pipeline = Pipeline(runner, settings.limits, workers=cores(), max_batch=32, metrics=metrics)
        return Models([ServedModel("identity", runner.metadata, pipeline)])

    setattr(Models, "open", staticmethod(load))  # noqa: B010 (the only door for a model that is no file)
    settings = Settings(address="127.0.0.1:0", models=(("identity", Path("none")),), port_file=port_file)
    server.serve(settings)


async def serve_echo(port_file: Path, dim: int) -> None:
    """Answer every call with the bytes that the identity model's answer takes."""
    result = embedder_pb2.EmbedResult(vector=np.full(dim, dim**-0.5, np.float32).tobytes())
    answer = embedder_pb2.EmbedResponse(results=[result], dim=dim, space="identity")
    unary = answer.SerializeToString()
    streamed = embedder_pb2.EmbedStreamResponse(batch=answer).SerializeToString()

    async def echo(request: bytes, context: Any) -> bytes:
        return unary

    async def echo_stream(requests: Any, context: Any) -> Any:
        async for _ in requests:
            yield streamed

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            if details.method == EMBED:
                return grpc.unary_unary_rpc_method_handler(echo)
            return grpc.stream_stream_rpc_method_handler(echo_stream)

    bare = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    bare.add_generic_rpc_handlers((Handler(),))
    port = bare.add_insecure_port("127.0.0.1:0")
    await bare.start()
    files.write_text(port_file, str(port))
    await bare.wait_for_termination()


if __name__ == "__main__":
    kind, where, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if kind == "imagekin":
        serve_imagekin(where, size)
    else:
        asyncio.run(serve_echo(where, size))
