"""Measure the cost of serving beside the bare model and other servers, under load, and after a restart.

    python bench/serve.py --model run/model.onnx --int8 run/model.int8.onnx --peers VENVS
    python bench/serve.py --sections identity,photos --short

Sections: ceiling, best, identity, loaded, photos, search, restart. Requests come from a load generator in a process of
its own, in a closed or an open (Poisson) loop; CPU seconds are the server's own, from /proc. Contenders take turns, and
ratios are taken round by round before their median is. The photos are real ones, from the folder that IMAGEKIN_DATA
names. Without --model a ResNet-18 for 128 pixels with random weights is made, which needs the [train] extra.

Each peer runs in a virtual environment of its own in the folder VENVS, made so:

    python3 -m venv venv-mosec && venv-mosec/bin/pip install mosec onnxruntime pillow numpy
    python3 -m venv venv-litserve && venv-litserve/bin/pip install litserve onnxruntime pillow numpy
    python3 -m venv venv-pytriton && venv-pytriton/bin/pip install nvidia-pytriton onnxruntime pillow numpy

One that is absent or does not start is left out, with the reason in the table. mosec 0.9.8, LitServe 0.2.19 and
nvidia-pytriton 0.7.0 were measured. PyTriton embeds an interpreter of its own, which fails with the library of some
other Python 3.11 (3.11.7: "no attribute '_recursion_count'"); with Debian's 3.11.2 it starts.

The load generator shares the machine with what it measures: its share of the cores is in the table.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness import report
from bench.serving import restart, sections
from bench.serving.bare import read_classes, read_photos
from bench.serving.sections import Bench, Result, versions_of_peers

SECTIONS: dict[str, Callable[[Bench], Result]] = {
    "ceiling": sections.ceiling,
    "best": sections.best,
    "identity": sections.identity,
    "loaded": sections.loaded,
    "photos": sections.photos,
    "search": sections.search,
    "restart": restart.restart,
}
_PACKAGES = ("onnxruntime", "grpcio", "protobuf", "pillow", "numpy", "faiss-cpu")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def make_model(path: Path) -> Path:
    """Write a ResNet-18 of random weights for images of 128 pixels and return its path."""
    import torch

    from imagekin.encoder import artifact
    from imagekin.encoder.metadata import Metadata, Preprocess
    from imagekin.training.export.export import space_of
    from imagekin.training.export.onnx_graph import ServedEncoder, to_onnx
    from imagekin.training.models.encoders import Normalisation, build_encoder

    torch.manual_seed(0)
    encoder = build_encoder("resnet18", 128).eval()
    normalisation = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    metadata = Metadata(space_of(encoder, normalisation), encoder.feature_dim, Preprocess(128, 128))
    sample = torch.zeros((2, 128, 128, 3), dtype=torch.uint8)
    return artifact.write(to_onnx(ServedEncoder(encoder, normalisation, None).eval(), sample.numpy()), metadata, path)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="The service beside the bare model and other servers.")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="comma-separated")
    parser.add_argument("--model", type=Path, help="a float32 model artifact")
    parser.add_argument("--int8", type=Path, help="the same model in int8")
    parser.add_argument("--peers", type=Path, help="folder of the peers' virtual environments")
    parser.add_argument("--gallery", type=int, default=1000, help="photos to find neighbours among; 0 finds none")
    parser.add_argument(
        "--embeddings", type=Path, help="float32 [n, D] in a .npy file, to search among; random without"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one figure")
    parser.add_argument("--rounds", type=int, default=3, help="figures of each contender")
    parser.add_argument("--short", action="store_true", help="one round of half a second, hundredth collections")
    options = parser.parse_args()
    chosen = options.sections.split(",")
    if unknown := [name for name in chosen if name not in SECTIONS]:
        parser.error(f"no section {unknown[0]!r}: choose of {', '.join(SECTIONS)}")
    data = Path(os.environ.get("IMAGEKIN_DATA") or DATA)
    if not (data / "grocery-test.tar").exists():
        parser.error(f"no photos in {data}: set IMAGEKIN_DATA to the folder of grocery-test.tar")
    gallery = 0 if options.short else options.gallery
    whole = Result()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bench = Bench(
            folder,
            options.model.resolve() if options.model else make_model(folder / "resnet18.onnx"),
            options.int8.resolve() if options.int8 else None,
            read_photos(data / "grocery-test.tar", 64 if options.short else 256),
            read_photos(data / "grocery-train.tar", gallery),
            read_classes(data / "grocery-train.tar", gallery),
            0.5 if options.short else options.seconds,
            1 if options.short else options.rounds,
            0.01 if options.short else 1.0,
            options.peers.resolve() if options.peers else None,
            options.embeddings.resolve() if options.embeddings else None,
        )
        for name in chosen:
            found = SECTIONS[name](bench)
            whole.rows += found.rows
            whole.targets += found.targets
            whole.figures |= found.figures
    title = f"serve: {', '.join(chosen)}" + (" (short)" if options.short else "")
    figures = {**whole.figures, "peers": versions_of_peers(options.peers)}
    report(title, ("what", "figure"), whole.rows, whole.targets, figures, _PACKAGES)


if __name__ == "__main__":
    main()
