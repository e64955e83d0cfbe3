"""`imagekin adopt`."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from imagekin import files
from imagekin.command_options import AsJson
from imagekin.counting import counted
from imagekin.errors import ImageError, InvalidArgumentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from imagekin.encoder.adoption.adopt import AdoptSettings
    from imagekin.encoder.metadata import Metadata, Preprocess

PresetName = Literal["imagenet", "clip", "dinov2", "half", "unit", "bytes"]
ResizeName = Literal["squash", "crop", "pad"]
InterpolationName = Literal["nearest", "bilinear", "bicubic", "lanczos", "box"]

_CHECKED_IMAGES = 16
# Images that presets are compared on, and how far a source is read to find them.
_CLASSES, _PER_CLASS, _READ_AT_MOST = 24, 5, 5000


def adopt(
    encoder: Annotated[
        str,
        typer.Argument(
            metavar="ENCODER",
            help="timm:NAME, torchvision:NAME, efficientnet-lite0 (1, 2), hf-hub:OWNER/MODEL, a folder with "
            "config.json, MODULE:FUNCTION, or an image encoder exported to FILE.onnx.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="MODEL.onnx", help="The model artifact to write.")],
    size: Annotated[
        int, typer.Option("--size", help="Side of its input in pixels; 0 is what the model fixes, else 224.", min=0)
    ] = 0,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE|random",
            help="Weights of an encoder by name: a state dict, a checkpoint or safetensors, instead of its source's.",
        ),
    ] = None,
    preset: Annotated[
        PresetName | None,
        typer.Option(
            "--preset",
            help="Normalisation, interpolation and crop of a family of encoders; half is pixels from -1 to 1, unit "
            "from 0 to 1, bytes from 0 to 255.",
            show_default="for FILE.onnx the best on labelled --images, else imagenet; by name the encoder's own",
        ),
    ] = None,
    mean: Annotated[
        str, typer.Option("--mean", metavar="R,G,B", help="Mean of pixels scaled to [0, 1], instead of the preset's.")
    ] = "",
    std: Annotated[str, typer.Option("--std", metavar="R,G,B", help="Their standard deviation, likewise.")] = "",
    resize: Annotated[
        ResizeName | None,
        typer.Option("--resize", help="How an image becomes a square.", show_default="crop, or the encoder's own"),
    ] = None,
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
    output_name: Annotated[str, typer.Option("--output", help="The output to take, or a value inside.")] = "",
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="SOURCE",
            help="Images to check it on; without, a few drawn pictures. Where they are labelled, they choose the "
            "preset of a FILE.onnx.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a model artifact of an image encoder from elsewhere, checked against the original."""
    files.check_no_folder(out)
    onnx = Path(encoder).is_file() or encoder.endswith(".onnx")
    overlay: dict[str, Any] = {"resize": resize, "interpolation": interpolation, "crop_fraction": crop_fraction}
    overlay |= {"mean": _triple("mean", mean), "std": _triple("std", std)}
    given = {name: value for name, value in overlay.items() if value is not None}
    if preset is not None or onnx:
        from imagekin.encoder.adoption.adopt import PRESETS

        given = dataclasses.asdict(PRESETS[preset or "imagenet"]) | given
    if not onnx:
        for name, value in (("layout", layout != "auto"), ("pool", pool != "none"), ("input", input_name)):
            if value:
                raise InvalidArgumentError(f"--{name} is for FILE.onnx; {encoder} is built by name", field=name)
        if output_name:
            raise InvalidArgumentError(f"--output is for FILE.onnx; {encoder} is built by name", field="output")
        _adopt_named(encoder, weights, size, given, images, out, as_json=as_json)
        return
    if weights is not None:
        raise InvalidArgumentError("an ONNX file has its weights inside; drop --weights", field="weights")
    from imagekin.encoder.adoption.adopt import AdoptSettings

    settings = AdoptSettings(
        size=size,
        layout=None if layout == "auto" else layout,
        pool=pool,
        input=input_name,
        output=output_name,
        **given,
    )
    chosen = preset is not None or bool(mean or std)
    asked = frozenset(name for name, value in overlay.items() if value is not None)
    _adopt_file(Path(encoder), settings, images, out, chosen=chosen, asked=asked, as_json=as_json)


def _adopt_file(
    file: Path,
    settings: "AdoptSettings",
    images: Path | None,
    out: Path,
    *,
    chosen: bool,
    asked: frozenset[str],
    as_json: bool,
) -> None:
    """Adopt an ONNX file; if nobody chose a normalisation, find the best on labelled images or say which was taken."""
    from imagekin.encoder.adoption.adopt import Adoption

    adoption = Adoption(file, settings)
    most = adoption.own_range
    best = None if chosen or images is None else _best_preset(file, settings, images, most is not None, asked)
    if best is not None:
        adoption = Adoption(file, best)
    elif not chosen and most is not None:
        share = 1.0 if most == 1 else 1 / most
        settings = dataclasses.replace(settings, mean=(0.0, 0.0, 0.0), std=(share, share, share))
        adoption = Adoption(file, settings)
        _note(f"{file.name} normalises its input itself; it is given pixels from 0 to {most:.0f}")
    elif not chosen:
        _note(f"{file.name} is given pixels normalised as --preset imagenet says; name another with --preset or --mean")
    elif most is not None and settings.mean != (0.0, 0.0, 0.0):
        _note(f"{file.name} normalises its input itself, and now once more; --mean 0,0,0 --std 1,1,1 leaves it to it")
    adopted = adoption.write(_shown(images, adoption.preprocess), out)
    _report(adopted.model, adopted.metadata, adopted.max_abs_diff, adopted.images, as_json=as_json)


def _best_preset(
    file: Path, settings: "AdoptSettings", source: Path, normalises: bool, asked: frozenset[str]
) -> "AdoptSettings | None":
    """Choose a preset by nearest neighbours among labelled images and say how; None where there are too few."""
    import numpy as np

    from imagekin.encoder.adoption.presets_on_images import OWN, TRIED, score_presets
    from imagekin.encoder.decoding.decode import load_pixels

    files, labels = _labelled(source)
    if len(files) - len(set(labels)) < 2 or len(set(labels)) < 2:
        return None
    numbers = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    found = score_presets(
        file,
        settings,
        OWN if normalises else TRIED,
        lambda preprocess: np.stack([load_pixels(data, preprocess) for data in files]),
        numbers,
        keep=asked,
    )
    figures = ", ".join(f"{each.preset} {each.accuracy:.1%}" for each in found)
    _note(
        f"nearest neighbours among {len(files)} of the images are of one class by preset: {figures}; {file.name} is "
        f"adopted with --preset {found[0].preset}"
    )
    return found[0].settings


def _labelled(source: Path) -> tuple[list[bytes], list[str]]:
    """Return files of a few images of each of some classes of a source, and their labels."""
    from itertools import islice

    from imagekin.encoder.decoding.decode import load_pixels
    from imagekin.encoder.metadata import Preprocess
    from imagekin.sources.open import open_source

    files: dict[str, list[bytes]] = {}
    small = Preprocess(8, 8)
    for record in islice(open_source(source), _READ_AT_MOST):
        if not isinstance(record.data, bytes) or not record.label:
            continue
        if record.label not in files and len(files) == _CLASSES:
            if all(len(each) == _PER_CLASS for each in files.values()):
                break
            continue
        kept = files.setdefault(record.label, [])
        if len(kept) == _PER_CLASS:
            continue
        try:
            load_pixels(record.data, small)
        except ImageError:
            continue
        kept.append(record.data)
    pairs = [(data, label) for label, kept in files.items() for data in kept]
    return [data for data, _ in pairs], [label for _, label in pairs]


def _note(text: str) -> None:
    print(f"imagekin adopt: {text}", file=sys.stderr)


def _adopt_named(
    text: str,
    weights: Path | None,
    size: int,
    given: dict[str, Any],
    images: Path | None,
    out: Path,
    *,
    as_json: bool,
) -> None:
    from imagekin.training.models.names import find_name

    name = find_name(text)  # before torch is loaded for nothing
    from imagekin.training.export.named import adopt_named
    from imagekin.training.models.encoders import Normalisation
    from imagekin.training.models.named import load_named

    encoder = load_named(name, weights=weights, image_size=size)
    if encoder.weights is not None:
        print(encoder.weights, file=sys.stderr)
    own = encoder.images.normalisation
    normalisation = Normalisation(given.pop("mean", own.mean), given.pop("std", own.std))
    config = dataclasses.replace(encoder.images, normalisation=normalisation, **given)
    adopted = adopt_named(encoder, config, lambda preprocess: _shown(images, preprocess), out)
    parity = adopted.parity
    _report(out, adopted.metadata, parity.max_abs_diff, parity.sample_count, as_json=as_json)


def _report(model: Path, metadata: "Metadata", difference: float, count: int, *, as_json: bool) -> None:
    from imagekin.cli.shared import console

    side = metadata.preprocess
    figures = {
        "model": str(model),
        "space": metadata.space,
        "dim": metadata.dim,
        "height": side.height,
        "width": side.width,
        "adopt_max_abs_diff": difference,
        "images": count,
    }
    if as_json:
        console.print_json(figures)
        return
    print(
        f"{model} written: {metadata.dim} components of {side.height}×{side.width} pixels, space "
        f"{metadata.space} (checked on {counted(count, 'image')}: max |Δ| {difference:.1e})"
    )


def _shown(images: Path | None, preprocess: "Preprocess") -> "NDArray[np.uint8]":
    """Return the images that the artifact is checked on, uint8 [N, H, W, 3]."""
    import numpy as np

    return np.stack(list(_read(images, preprocess) if images is not None else _drawn(preprocess)))


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
