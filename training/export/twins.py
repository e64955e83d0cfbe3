"""Write an artifact's twin of lower precision, and refuse to when its answers differ from the original's.

The twin keeps the embedding space: collections made with either one serve both. That holds only if the answers agree,
so they are compared on real images that were not used for calibration.
"""

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from imagekin.encoder import artifact
from imagekin.encoder.metadata import JSON
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.training.data.arrays import Split
from imagekin.training.data.images import ImageSet, has_split, load_images
from imagekin.training.export.parity import knn_agreement
from imagekin.training.export.precision_graphs import to_float16, to_int8
from imagekin.training.settings import MODEL_FILE, TrainSettings

ReducedPrecision = Literal["int8", "float16"]

MIN_AGREEMENT = 0.99
_CALIBRATION_COUNT = 128
_COMPARED_COUNT = 1000
_LEAST_COUNT = 4
_FLOAT_SHARES = (0.0, 0.4, 0.7)
"""Parts of the encoder's front that stay in float32: the first whose answers agree is taken."""


@dataclass(frozen=True, slots=True)
class ReducedReport:
    """Results of writing a twin.

    Attributes:
        model: the file.
        precision: `int8` or `float16`.
        space: id of its embedding space, the original's.
        knn_agreement: share of held-out images with the same nearest-neighbour answer as the original's, 0 to 1; the
            lower of two: all embeddings by the twin, and queries by the twin among embeddings by the original.
        sample_count: held-out images.
        float_share: share of the layers, from the first, that stay in float32; at least the first one does.
        file_bytes: size of the file.
        parent_bytes: size of the original.
        seconds: time that it took.
    """

    model: Path
    precision: ReducedPrecision
    space: str
    knn_agreement: float
    sample_count: int
    float_share: float
    file_bytes: int
    parent_bytes: int
    seconds: float

    def to_json(self) -> dict[str, JSON]:
        """Return the report as one flat JSON object."""
        return {**dataclasses.asdict(self), "model": str(self.model)}


def reduce_artifact(
    source: Path, out: Path, precision: ReducedPrecision, calibration: ImageSet, held_out: ImageSet
) -> ReducedReport:
    """Write the twin `out` of the artifact `source` if its answers agree; otherwise raise and leave nothing behind.

    Args:
        source: a float32 artifact.
        out: the file; one that exists is replaced.
        precision: `int8` or `float16`.
        calibration: real images, prepared as the artifact's metadata say; they give int8 its ranges.
        held_out: at least four other real images, prepared likewise; answers are compared by the neighbour's label, and
            without labels by the neighbour itself.

    Raises:
        InvalidArgumentError: `source` is of lower precision already, or there are too few images.
        FailedPreconditionError: fewer than 99 % of the answers agree.
    """
    started = time.perf_counter()
    metadata = artifact.read_metadata(source)
    if metadata.precision != "float32":
        raise InvalidArgumentError(f"{source.name} is {metadata.precision} already; give the float32 model")
    if min(len(calibration), len(held_out)) < _LEAST_COUNT:
        raise InvalidArgumentError(f"give at least {2 * _LEAST_COUNT} images to convert by and to check on")
    graph = artifact.load_graph(source)
    sample = _spread(held_out, _COMPARED_COUNT)
    labels = sample.labels if sample.class_names else np.arange(len(sample))
    reference = Encoder.open(source, device="cpu").embed_pixels(sample.pixels)
    reduced = dataclasses.replace(metadata, precision=precision, scores={})
    pixels = _spread(calibration, _CALIBRATION_COUNT).pixels
    shares = _FLOAT_SHARES if precision == "int8" else (0.0,)
    agreement = 0.0
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unchecked-", dir=out.parent) as folder:
        for share in shares:
            converted = to_int8(graph, pixels, share) if precision == "int8" else to_float16(graph)
            unchecked = artifact.write(converted, reduced, Path(folder) / out.name)
            embeddings = Encoder.open(unchecked, device="cpu").embed_pixels(sample.pixels)
            agreement = _agreement(reference, embeddings, labels)
            if agreement >= MIN_AGREEMENT:
                scored = dataclasses.replace(reduced, scores={"parent_knn_agreement": agreement})
                artifact.write(converted, scored, unchecked).replace(out)
                break
        else:
            raise FailedPreconditionError(
                f"{precision} answers otherwise than {source.name}: {agreement:.2%} of the nearest-neighbour answers "
                f"agree, needed are {MIN_AGREEMENT:.0%}; nothing was written"
            )
    return ReducedReport(
        model=out,
        precision=precision,
        space=metadata.space,
        knn_agreement=agreement,
        sample_count=len(sample),
        float_share=share,
        file_bytes=out.stat().st_size,
        parent_bytes=source.stat().st_size,
        seconds=time.perf_counter() - started,
    )


def reduce_run(run: Path, precision: ReducedPrecision, *, data: str = "", test: str = "") -> ReducedReport:
    """Write the twin of a run's `model.onnx` beside it, calibrated on its training images, checked on its test images.

    Args:
        run: the run's folder.
        precision: `int8` or `float16`.
        data: path of the training images, if they have moved.
        test: path of the test images, likewise. A run without any is checked on a third of the training images.

    Raises:
        NotFoundError: there is no model yet, or the images are gone.
        InvalidArgumentError, FailedPreconditionError: as for `reduce_artifact`.
    """
    settings = TrainSettings.load(run)
    data, test, rule = data or settings.data, test or settings.test, settings.label_from
    model = run / MODEL_FILE
    preprocess = artifact.read_metadata(model).preprocess
    test = test or (data if has_split(data, rule) else "")
    part: Split = "train" if has_split(data, rule) else "all"
    train = load_images(data, split=part, preprocess=preprocess, limit=settings.limit, label_from=rule)
    if test:
        part = "test" if has_split(test, rule) else "all"
        held_out = load_images(test, split=part, preprocess=preprocess, label_from=rule)
    else:
        train, held_out = split_images(train)
    return reduce_artifact(model, twin_path(model, precision), precision, train, held_out)


def twin_path(model: Path, precision: ReducedPrecision) -> Path:
    """Return the path of the twin of `model`: `model-int8.onnx` or `model-fp16.onnx` beside it."""
    return model.with_name(f"{model.stem}-{'int8' if precision == 'int8' else 'fp16'}{model.suffix}")


def split_images(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Split images in two, every third one in the second part."""
    rows = np.arange(len(images))
    return images.take(rows[rows % 3 != 2]), images.take(rows[rows % 3 == 2])


def _agreement(reference: NDArray[np.float32], candidate: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the lower of the agreements in the two ways that a twin is used."""
    own = knn_agreement(reference, candidate, labels)
    return min(own, knn_agreement(reference, candidate, labels, gallery=reference))


def _spread(images: ImageSet, count: int) -> ImageSet:
    """Take `count` images at even distances."""
    return images.take(np.linspace(0, len(images) - 1, min(len(images), count)).astype(np.int64))
