"""Serve the same model with other servers, each in its own interpreter: the peers of `bench/serve.py`.

    PYTHON bench/serving/peers.py naive|mosec|litserve|pytriton MODEL PORT CORES

All of them decode with `imagekin.encoder.decoding.decode`, run ONNX Runtime with one thread an inference and as many
inferences at one time as there are cores, and take one image a request; those that can batch may.
"""

import base64
import importlib
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from imagekin.encoder.decoding.decode import load_pixels
from imagekin.encoder.metadata import METADATA_KEY, Metadata, Preprocess

BATCH = 8
# Workers of some peers are processes that import this file anew, under an argument list of the peer's own.
KIND = os.environ.setdefault("IMAGEKIN_BENCH_PEER", sys.argv[1] if len(sys.argv) > 2 else "")
MODEL = os.environ.setdefault("IMAGEKIN_BENCH_MODEL", sys.argv[2] if len(sys.argv) > 2 else "")


class Plain:
    """ONNX Runtime and the decoder alone."""

    def __init__(self, path: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        text = self.session.get_modelmeta().custom_metadata_map[METADATA_KEY]
        self.preprocess: Preprocess = Metadata.from_json(text).preprocess

    def embed(self, files: list[bytes]) -> NDArray[np.float32]:
        """Return the embeddings of image files, float32 [N, D]."""
        pixels = np.stack([load_pixels(data, self.preprocess) for data in files])
        found: NDArray[np.float32] = self.session.run(["embedding"], {"pixels": pixels})[0]
        return found


def naive(path: str, port: int, cores: int) -> None:
    """Serve with grpc.aio and a pool of threads, a common first version."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    model, pool = Plain(path), ThreadPoolExecutor(cores)

    async def embed(request: bytes, context: Any) -> bytes:
        loop = asyncio.get_running_loop()
        vectors = await loop.run_in_executor(pool, model.embed, [request])
        return vectors.tobytes()

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(embed)

    async def run() -> None:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        server.add_generic_rpc_handlers((Handler(),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()

    asyncio.run(run())


if KIND == "mosec":
    MOSEC: Any = importlib.import_module("mosec")

    class MosecEmbed(MOSEC.Worker):  # type: ignore[misc]
        """A process that embeds batches."""

        def __init__(self) -> None:
            super().__init__()
            self.model = Plain(MODEL)

        def deserialize(self, data: bytes) -> bytes:
            """Take the request's bytes as they are."""
            return data

        def serialize(self, data: bytes) -> bytes:
            """Give the answer's bytes as they are."""
            return data

        def forward(self, data: list[bytes]) -> list[bytes]:
            """Embed a batch."""
            return [vector.tobytes() for vector in self.model.embed(data)]


def mosec(path: str, port: int, cores: int) -> None:
    """Serve with mosec: a process a core, dynamic batches."""
    sys.argv = ["mosec", "--address", "127.0.0.1", "--port", str(port), "--timeout", "60000"]
    server = MOSEC.Server()
    server.append_worker(MosecEmbed, num=cores, max_batch_size=BATCH, max_wait_time=1)
    server.run()


if KIND == "litserve":
    LITSERVE: Any = importlib.import_module("litserve")

    class LitEmbed(LITSERVE.LitAPI):  # type: ignore[misc]
        """A process that embeds single images."""

        def setup(self, device: str) -> None:
            """Load the model."""
            self.model = Plain(MODEL)

        def decode_request(self, request: dict[str, str]) -> bytes:
            """Return the image."""
            return base64.b64decode(request["image"])

        def predict(self, image: bytes) -> NDArray[np.float32]:
            """Embed it."""
            vector: NDArray[np.float32] = self.model.embed([image])[0]
            return vector

        def encode_response(self, output: NDArray[np.float32]) -> dict[str, str]:
            """Return the answer."""
            return {"vector": base64.b64encode(output.tobytes()).decode()}


def litserve(path: str, port: int, cores: int) -> None:
    """Serve with LitServe: a process a core, images as base64 in JSON, as its documents show."""
    server = LITSERVE.LitServer(LitEmbed(), accelerator="cpu", workers_per_device=cores)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")


def pytriton(path: str, port: int, cores: int) -> None:
    """Serve with PyTriton: Triton's own server in front of Python workers."""
    batch: Any = importlib.import_module("pytriton.decorators").batch
    config: Any = importlib.import_module("pytriton.model_config")
    triton: Any = importlib.import_module("pytriton.triton")

    models = [Plain(path) for _ in range(cores)]

    def worker(model: Plain) -> Any:
        def infer(image: Any) -> list[Any]:
            return [model.embed([bytes(data) for data in image[:, 0]])]

        return batch(infer)

    where = triton.TritonConfig(grpc_address="127.0.0.1", grpc_port=port, http_port=port + 1, metrics_port=port + 2)
    with triton.Triton(config=where) as server:
        server.bind(
            model_name="encoder",
            infer_func=[worker(model) for model in models],
            inputs=[config.Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[config.Tensor(name="embedding", dtype=np.float32, shape=(-1,))],
            config=config.ModelConfig(max_batch_size=BATCH),
        )
        server.serve()


if __name__ == "__main__":
    kind, model_path, where, number = sys.argv[1:5]
    {"naive": naive, "mosec": mosec, "litserve": litserve, "pytriton": pytriton}[kind](
        model_path, int(where), int(number)
    )
