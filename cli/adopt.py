"""`imagekin adopt`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from imagekin.cli.shared import options
from imagekin.errors import ImageError, InvalidArgumentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from imagekin.encoder.adoption.adopt import AdoptSettings
    from imagekin.encoder.metadata import Preprocess

PresetName = Literal["imagenet", "clip", "dinov2"]
ResizeName = Literal["squash", "crop", "pad"]
InterpolationName = Literal["nearest", "bilinear", "bicubic", "lanczos", "box"]

_CHECKED_IMAGES = 16


def adopt(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="An image encoder exported to ONNX.")],
    out: Annotated[Path, typer.Option("--out", metavar="MODEL.onnx", help="The model artifact to write.")],
    size: Annotated[
        int, typer.Option("--size", help="Side of its input in pixels; 0 is what the model fixes, else 224.", min=0)
    ] = 0,
    preset: Annotated[
        PresetName, typer.Option("--preset", help="Normalisation, interpolation and crop of a family of encoders.")
    ] = "imagenet",
    mean: Annotated[
        str, typer.Option("--mean", metavar="R,G,B", help="Mean of pixels scaled to [0, 1], instead of the preset's.")
    ] = "",
    std: Annotated[str, typer.Option("--std", metavar="R,G,B", help="Their standard deviation, likewise.")] = "",
    resize: Annotated[ResizeName, typer.Option("--resize", help="How an image becomes a square.")] = "crop",
    interpolation: Annotated[
        InterpolationName | None, typer.Option("--interpolation", help="Filter of the resizing; else the preset's.")
    ] = None,
    crop_fraction: Annotated[
        float | None, typer.Option("--crop-fraction", help="Part of the sides that a crop keeps; else the preset's.")
    ] = None,
    layout: Annotated[
        Literal["auto", "nchw", "nhwc"], typer.Option("--layout", help="Order of the input's sides.")
    ] = "auto",
    pool: Annotated[
        Literal["none", "cls", "mean"], typer.Option("--pool", help="Of tokens: the first one, or the mean of all.")
    ] = "none",
    input_name: Annotated[str, typer.Option("--input", help="Its input, where it has several.")] = "",
    output_name: Annotated[str, typer.Option("--output", help="The output to take, where it has several.")] = "",
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="SOURCE", help="Images to check it on; without, a few drawn pictures."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Make a model artifact of an ONNX image encoder from elsewhere, checked against the original."""
    from imagekin.encoder.adoption.adopt import PRESETS, AdoptSettings

    family = PRESETS[preset]
    settings = AdoptSettings(
        mean=_triple("mean", mean) or family.mean,
        std=_triple("std", std) or family.std,
        size=size,
        resize=resize,
        interpolation=interpolation or family.interpolation,
        crop_fraction=family.crop_fraction if crop_fraction is None else crop_fraction,
        layout=None if layout == "auto" else layout,
        pool=pool,
        input=input_name,
        output=output_name,
    )
    _write(file, settings, images, out, as_json=as_json)


def _write(file: Path, settings: "AdoptSettings", images: Path | None, out: Path, *, as_json: bool) -> None:
    import numpy as np

    from imagekin.cli.shared import console
    from imagekin.encoder.adoption.adopt import Adoption

    adoption = Adoption(file, settings)
    shown = _read(images, adoption.preprocess) if images is not None else _drawn(adoption.preprocess)
    adopted = adoption.write(np.stack(list(shown)), out)
    metadata = adopted.metadata
    side = metadata.preprocess
    figures = {
        "model": str(adopted.model),
        "space": metadata.space,
        "dim": metadata.dim,
        "height": side.height,
        "width": side.width,
        "adopt_max_abs_diff": adopted.max_abs_diff,
        "images": adopted.images,
    }
    if as_json:
        console.print_json(figures)
        return
    print(
        f"{adopted.model} written: {metadata.dim} components of {side.height}×{side.width} pixels, space "
        f"{metadata.space} (checked on {adopted.images} images: max |Δ| {adopted.max_abs_diff:.1e})"
    )


def _triple(name: str, text: str) -> tuple[float, float, float] | None:
    if not text:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise InvalidArgumentError(f"--{name} takes three numbers, such as 0.5,0.5,0.5", field=name) from None
    return red, green, blue


def _read(source: Path, preprocess: "Preprocess") -> "Iterator[NDArray[np.uint8]]":
    """Yield the first images of a source that can be read; at least two."""
    from imagekin.encoder.decoding.decode import load_pixels
    from imagekin.sources.open import open_source

    found = 0
    for record in open_source(source):
        if found == _CHECKED_IMAGES:
            return
        if not isinstance(record.data, bytes):
            continue
        try:
            yield load_pixels(record.data, preprocess)
        except ImageError:
            continue
        found += 1
    if found < 2:
        raise ImageError(f"{source} holds fewer than two images that can be read", field="images")


def _drawn(preprocess: "Preprocess") -> "Iterator[NDArray[np.uint8]]":
    """Draw pictures of coloured waves: smooth, all different, and with the whole range of values."""
    import numpy as np

    rows, columns = np.mgrid[0 : preprocess.height, 0 : preprocess.width]
    for seed in range(_CHECKED_IMAGES // 2):
        random = np.random.default_rng(seed)
        planes = []
        for _ in range(3):
            down, across, phase = random.uniform(0.01, 0.2), random.uniform(0.01, 0.2), random.uniform(0, 6)
            planes.append(127.5 + 127.5 * np.sin(down * rows + across * columns + phase))
        yield np.stack(planes, axis=-1).astype(np.uint8)
