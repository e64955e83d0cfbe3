"""Images per second of an artifact and its int8 twin, in ONNX Runtime alone, pixels ready in memory, on this CPU.

    python bench/export.py MODEL.onnx [MODEL.onnx …] --images SOURCE

For each model: its int8 twin is made in memory with the first layer in float32 (what `imagekin export --int8` tries
first), then both run in turn, one and two threads, batches of 1 and 32. Agreement is on images of SOURCE that the
conversion has not seen; it is stated here, not enforced.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness import Target, interleave, ratio, report
from imagekin.encoder import artifact
from imagekin.encoder.runtime.session import Encoder
from imagekin.training.data.images import load_images
from imagekin.training.export.parity import knn_agreement
from imagekin.training.export.precision_graphs import to_int8
from imagekin.training.export.twins import split_images

THREADS = (1, 2)
BATCHES = (1, 32)


def rate(encoder: Encoder, pixels: NDArray[np.uint8], seconds: float) -> Callable[[], float]:
    """Return a function that measures images/s on batches of these pixels."""

    def measure() -> float:
        started, images = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            encoder.embed_pixels(pixels)
            images += len(pixels)
        return images / (time.perf_counter() - started)

    return measure


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--images", required=True)
    parser.add_argument("--limit", type=int, default=12, help="images of each class")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="of each measurement")
    options = parser.parse_args()
    rows, targets = [], []
    figures: dict[str, object] = {}
    for path in options.models:
        name = f"{path.parent.name}/{path.stem}"
        metadata = artifact.read_metadata(path)
        images = load_images(options.images, preprocess=metadata.preprocess, limit=options.limit)
        calibration, held_out = split_images(images)
        with tempfile.TemporaryDirectory() as folder:
            converted = to_int8(artifact.load_graph(path), calibration.pixels[:: max(1, len(calibration) // 128)])
            twin = Path(folder) / "int8.onnx"
            artifact.write(converted, dataclasses.replace(metadata, precision="int8"), twin)
            whole, small = (Encoder.open(file, device="cpu").embed_pixels(held_out.pixels) for file in (path, twin))
            agreement = knn_agreement(whole, small, held_out.labels)
            figures[f"{name} agreement"] = agreement
            for threads in THREADS:
                encoders = [Encoder.open(file, device="cpu", threads=threads) for file in (path, twin)]
                for batch in BATCHES:
                    pixels = held_out.pixels[:batch]
                    measures = {
                        kind: rate(encoder, pixels, options.seconds)
                        for kind, encoder in zip(("float32", "int8"), encoders, strict=True)
                    }
                    found = interleave(measures, options.rounds)
                    medians = {kind: float(np.median(values)) for kind, values in found.items()}
                    times = ratio(found["int8"], found["float32"])
                    case = f"{name}, {threads} threads, batch {batch}"
                    figures[case] = {**medians, "ratio": times}
                    shown = [f"{medians[kind]:,.0f}" for kind in ("float32", "int8")]
                    rows.append([name, str(threads), str(batch), *shown, f"{times:.2f}×", f"{agreement:.2%}"])
                    targets.append(Target(f"int8 over float32: {case}", times, 1.0, at_least=True))
    columns = ("model", "threads", "batch", "float32 images/s", "int8 images/s", "ratio", "agreement")
    packages = ("onnxruntime", "onnx", "numpy")
    report("int8 twins in ONNX Runtime", columns, rows, targets, figures, packages)


if __name__ == "__main__":
    main()
