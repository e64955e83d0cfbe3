"""Nobody takes all: a client with many large pictures does not keep another one from its small ones."""

import io
from pathlib import Path
from typing import Any

import grpc
from PIL import Image as Picture

from imagekin import Client
from imagekin.v1 import embedder_pb2, embedder_pb2_grpc
from imagekin.v1.common_pb2 import Image
from tests.artifacts import tiny_artifact
from tests.e2e.processes import running_server
from tests.serving.running import png

# A tenth of a second each, on a fast machine.
LARGE, SIDE = 16, 2000


def large_png() -> bytes:
    file = io.BytesIO()
    Picture.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB").save(file, "PNG", compress_level=1)
    return file.getvalue()


def test_a_small_photo_is_answered_beside_a_call_of_many_large_ones(tmp_path: Path) -> None:
    model = tiny_artifact(tmp_path / "model.onnx", size=8)
    many = embedder_pb2.EmbedRequest(images=[Image(data=large_png())] * LARGE)
    with (
        running_server(model, tmp_path / "data") as server,
        Client(server.address) as client,
        grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        alone = client.embed([png(1)])
        bulk: Any = embedder_pb2_grpc.EmbedderStub(channel).Embed.future(many, timeout=300)
        answered = 0
        while not bulk.done() and answered < 8:
            assert (client.embed([png(1)]) == alone).all()
            answered += not bulk.done()
        # In order of arrival the first one would have come after all the large ones.
        assert answered >= 2
        assert len(bulk.result().results) == LARGE
