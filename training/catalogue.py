"""List the encoders that are available, with size, dimension and speed."""

import fnmatch
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from imagekin import files
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import ImagekinError
from imagekin.machine import cores
from imagekin.training.data.storage import cache_root
from imagekin.training.export.named import adopt_named
from imagekin.training.models.named import RANDOM, build_named, load_named
from imagekin.training.models.names import find_name

SELECTED = (
    "efficientnet-lite0",
    "efficientnet-lite1",
    "efficientnet-lite2",
    "timm:mobilenetv4_conv_small.e2400_r224_in1k",
    "timm:resnet18.a1_in1k",
    "timm:resnet50.a1_in1k",
    "timm:convnext_tiny.fb_in22k",
    "timm:vit_small_patch16_224.augreg_in21k",
    "timm:vit_small_patch14_dinov2.lvd142m",
    "timm:vit_base_patch16_clip_224.openai",
    "timm:vit_base_patch16_siglip_224.webli",
    "torchvision:resnet18",
    "torchvision:resnet50",
)
"""Shown when no pattern is given: a few for the CPU, a few known for embeddings."""

SPEEDS_FILE = "encoder-speeds.json"
MEASURED_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Described:
    """An encoder's figures.

    Attributes:
        name: as `imagekin adopt` takes it.
        parameters: number of its weights, without a classifier.
        dim: components of its embeddings.
        size: side of its input in pixels.
        images_per_second: measured on this machine's CPU, None where it was not.
    """

    name: str
    parameters: int
    dim: int
    size: int
    images_per_second: float | None


def matching(pattern: str) -> tuple[str, ...]:
    """Return the names that match a shell pattern such as `timm:resnet*`; `*` alone stands for every source's.

    A pattern without a source's name is matched in each: `*dinov2*`.
    """
    if not pattern:
        return SELECTED
    import timm
    from torchvision import models

    # With the tags of their weights (`name.tag`), as users name them; models without weights keep their plain names.
    known = [f"timm:{name}" for name in timm.list_models(pretrained=True)]
    known += [f"timm:{name}" for name in timm.list_models()]
    known += [f"torchvision:{name}" for name in models.list_models(module=models)]
    known += SELECTED[:3]
    wanted = (pattern, f"timm:{pattern}", f"torchvision:{pattern}")
    return tuple(dict.fromkeys(name for name in known if any(fnmatch.fnmatchcase(name, one) for one in wanted)))


def describe(name: str) -> Described:
    """Return an encoder's figures from its structure alone; nothing is downloaded.

    Raises:
        InvalidArgumentError: it is no encoder of images.
    """
    try:
        with torch.device("meta"):
            backbone, images = build_named(find_name(name))
    except ImagekinError:
        backbone, images = build_named(find_name(name))  # some cannot be built without values
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    return Described(name, parameters, backbone.feature_dim, images.size, _speeds().get(_key(name)))


def measure(name: str) -> float:
    """Measure the images per second that an encoder embeds on this CPU as it is served, and remember the figure."""
    encoder = load_named(find_name(name), weights=Path(RANDOM))
    with tempfile.TemporaryDirectory() as folder:
        shape = (8, encoder.images.size, encoder.images.size, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        adopted = adopt_named(encoder, encoder.images, lambda preprocess: pixels, Path(folder) / "model.onnx")
        served = Encoder.open(adopted.model, device="cpu")
        served.embed_pixels(pixels)
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < MEASURED_SECONDS:
            served.embed_pixels(pixels)
            count += len(pixels)
        rate = count / (time.perf_counter() - started)
    _remember({**_speeds(), _key(name): rate})
    return rate


def _key(name: str) -> str:
    """Return the key of a measured speed: the architecture, whatever its weights, and the number of cores."""
    return f"{name.partition('.')[0]} on {cores()} cores"


def _speeds() -> Mapping[str, float]:
    try:
        found = json.loads((cache_root() / SPEEDS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: float(value) for key, value in found.items() if isinstance(value, int | float)}


def _remember(speeds: Mapping[str, float]) -> None:
    path = cache_root() / SPEEDS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(speeds, indent=2) + "\n")
