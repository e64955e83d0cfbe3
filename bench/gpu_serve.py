"""Measure serving on a GPU beside bare ONNX Runtime on the same GPU: decoded pixels first, then photos.

    imagekin tune run/model.onnx --device cuda
    python bench/gpu_serve.py --model run/model.onnx
    python bench/gpu_serve.py --model run/model.onnx --device cpu --seconds 0.5      a trial of the script

Without a GPU, and without --device cpu, it says "not measured". Pixels go through the KServe protocol as raw tensors of
32 images; photos are those of `bench/serve.py`. Bare ONNX Runtime runs batches of 64 from and to the host's memory, one
after another, in the arithmetic that is served: float32 without TF32, which would give other embeddings than a CPU's.
Its rate with TF32 stands beside it.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnxruntime as ort

from bench.harness import hardware, interleave, ratio, report
from bench.serve import DATA
from bench.serving.bare import read_photos
from bench.serving.identity import EMBED
from bench.serving.load import Load
from bench.serving.payloads import Payloads, pixels_request
from bench.serving.process import generate, imagekin
from bench.serving.sections import Result
from imagekin.encoder.runtime.session import Encoder, cuda_options

_IMAGES = 32
_INFER = "/inference.GRPCInferenceService/ModelInfer"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Serving on a GPU beside bare ONNX Runtime.")
    parser.add_argument("--model", type=Path, required=True, help="a model artifact")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one figure")
    parser.add_argument("--rounds", type=int, default=3, help="figures of each contender")
    options = parser.parse_args()
    if options.device == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
        print("not measured: no CUDA here")
        print(json.dumps({"bench": "gpu_serve", "figures": None, "targets": [], "hardware": hardware()}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(Path(temporary), options.model.resolve(), options.device, options.seconds, options.rounds)
    packages = ("onnxruntime", "onnxruntime-gpu", "grpcio", "numpy")
    title = f"gpu_serve on {options.device}"
    report(title, ("what", "figure"), found.rows, found.targets, found.figures, packages)


def measure(folder: Path, model: Path, device: str, seconds: float, rounds: int) -> Result:
    """Measure the model bare and served."""
    result = Result()
    encoder = Encoder.open(model, device=device)  # type: ignore[arg-type]
    side = encoder.metadata.preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (64, side.height, side.width, 3), np.uint8)

    def opened(tf32: str) -> ort.InferenceSession:
        cuda = [("CUDAExecutionProvider", cuda_options() | {"use_tf32": tf32})]
        return ort.InferenceSession(model, providers=cuda if device == "cuda" else ["CPUExecutionProvider"])

    def bare(session: ort.InferenceSession) -> float:
        start, count = time.perf_counter(), 0
        while count < 2 * len(pixels) or time.perf_counter() - start < seconds:
            session.run(["embedding"], {"pixels": pixels})
            count += len(pixels)
        return count / (time.perf_counter() - start)

    raw = folder / "pixels.bin"
    raw.write_bytes(pixels_request(model.stem, pixels[:_IMAGES]))
    with imagekin(folder, "gpu", ["--model", str(model), "--device", device]) as served:
        load = Load(served.address, _INFER, (str(raw),), seconds, concurrency=12, pids=served.pids())

        def serve(load: Load, images: int) -> float:
            outcome = generate(load)
            return outcome.good * images / outcome.seconds

        contenders: dict[str, Callable[[], float]] = {
            "bare": partial(bare, opened("0")),
            "pixels": lambda: serve(load, _IMAGES),
        }
        if device == "cuda":
            contenders["bare with TF32"] = partial(bare, opened("1"))
        data = Path(os.environ.get("IMAGEKIN_DATA") or DATA) / "grocery-test.tar"
        if data.exists():
            photos = Payloads(folder, read_photos(data, 64)).embed(16)
            decoding = replace(load, method=EMBED, payloads=photos)
            contenders["photos"] = lambda: serve(decoding, 16)
        rates = interleave(contenders, rounds)
    for name, values in rates.items():
        result.add(f"{name}: images/s", sorted(values)[len(values) // 2], "/s")
    result.add("served pixels over bare ONNX Runtime", ratio(rates["pixels"], rates["bare"]), "×", 0.9)
    return result


if __name__ == "__main__":
    main()
