"""Adopt encoders of many kinds by name, with random weights, and check what becomes of each.

    python -m tests.training.models.architectures [NAME…]       without names ten kinds, full size: minutes

Each must pass the export's own gate (|Δ| ≤ 1e-4), embed batches of one and of several alike, be served by a real server
and answer there as it does here, and get an int8 twin whose answers are the model's. The test suite does the same with
timm's smallest, without a server.
"""

import io
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from imagekin import Client
from imagekin.encoder.metadata import Preprocess
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import FailedPreconditionError
from imagekin.training.data.images import ImageSet
from imagekin.training.export.named import adopt_named
from imagekin.training.export.twins import reduce_artifact
from imagekin.training.models.named import RANDOM, load_named
from imagekin.training.models.names import find_name
from tests.e2e.processes import running_server

FULL_SIZE = (
    "timm:resnet50",
    "timm:convnext_tiny",
    "timm:efficientnet_b0",
    "timm:mobilenetv4_conv_medium",
    "timm:regnety_016",
    "timm:vit_small_patch16_224",
    "timm:vit_small_patch14_reg4_dinov2.lvd142m",
    "timm:swin_tiny_patch4_window7_224",
    "timm:vit_base_patch32_clip_224.openai",
    "timm:vit_base_patch16_siglip_224",
)
SMALL = ("timm:test_resnet", "timm:test_convnext", "timm:test_efficientnet", "timm:test_vit3", "torchvision:resnet18")
IMAGES = 24


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found of one encoder.

    Attributes:
        dim: components of its embeddings.
        size: side of its input.
        max_abs_diff: largest difference of a component, the file beside the torch encoder.
        twin: agreement of the int8 twin's answers; None when no twin was written because they differ too much.
        seconds: time that all of it took.
    """

    dim: int
    size: int
    max_abs_diff: float
    twin: float | None
    seconds: float


def drawn(preprocess: Preprocess, count: int = IMAGES) -> NDArray[np.uint8]:
    """Return different images of smooth blots in different colours, uint8 [count, H, W, 3]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 4, 4, 3)) // 2 + rng.integers(0, 128, (count, 1, 1, 3))
    rows = np.arange(preprocess.height) * 4 // preprocess.height
    columns = np.arange(preprocess.width) * 4 // preprocess.width
    return np.ascontiguousarray(coarse[:, rows][:, :, columns].astype(np.uint8))


def check(text: str, folder: Path, *, serve: bool = False) -> Checked:
    """Adopt an encoder with random weights, run it, and make its twin; raises AssertionError or the gate's errors.

    With `serve`, the model also answers two batches in a server of its own.
    """
    started = time.perf_counter()
    torch.manual_seed(0)
    encoder = load_named(find_name(text), weights=Path(RANDOM))
    adopted = adopt_named(encoder, encoder.images, drawn, folder / "model.onnx")
    served = Encoder.open(adopted.model, device="cpu")
    preprocess = served.metadata.preprocess
    pixels = drawn(preprocess)
    together = served.embed_pixels(pixels[:6])
    alone = np.concatenate([served.embed_pixels(image[None]) for image in pixels[:6]])
    assert np.abs(together - alone).max() <= 1e-4
    assert np.ptp(together, axis=0).max() > 1e-4, "all images have one embedding"
    if serve:
        # Files are decoded on the way, resized and cropped as the model's own rule says.
        pictures = [_png(image) for image in pixels[:6]]
        with running_server(adopted.model, folder / "data") as server, Client(server.address) as client:
            answers = np.concatenate([client.embed(pictures[:1]), client.embed(pictures[1:])])
        assert np.abs(answers - served.embed(pictures)).max() <= 1e-4, "served embeddings differ"
    everything = ImageSet(pixels, np.full(IMAGES, -1), (), tuple(map(str, range(IMAGES))), "drawn", preprocess)
    half = np.arange(IMAGES // 2)
    twin: float | None = None
    try:
        reduced = reduce_artifact(
            adopted.model, folder / "int8.onnx", "int8", everything.take(half), everything.take(half + IMAGES // 2)
        )
        twin = reduced.knn_agreement
        Encoder.open(reduced.model, device="cpu").embed_pixels(pixels[:3])
    except FailedPreconditionError:
        pass
    seconds = time.perf_counter() - started
    return Checked(served.metadata.dim, preprocess.height, adopted.parity.max_abs_diff, twin, seconds)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def main(names: list[str]) -> None:
    """Check each and print a line."""
    for name in names or FULL_SIZE:
        with tempfile.TemporaryDirectory() as folder:
            found = check(name, Path(folder), serve=True)
        twin = "no int8 twin" if found.twin is None else f"int8 agrees {found.twin:.1%}"
        print(
            f"{name:46} {found.dim:5} of {found.size} px  |Δ| {found.max_abs_diff:.1e}  {twin}  {found.seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
