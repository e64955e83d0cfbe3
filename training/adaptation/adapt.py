"""Adapt an artifact to labelled images: embed once, train a head, keep it if it helps on held-out images.

    report = adapt(Path("lite0.onnx"), images, Path("adapted.onnx"), AdaptSettings())

A fifth of every class is held out to compare the embeddings before and after. The head that is written is then trained
on all images.
"""

import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagekin import files
from imagekin.encoder import artifact
from imagekin.encoder.metadata import JSON, Metadata
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.training.adaptation.graft import graft
from imagekin.training.adaptation.residual_head import ResidualHead, train_head
from imagekin.training.adaptation.settings import AdaptSettings
from imagekin.training.adaptation.view_embeddings import embed_views
from imagekin.training.data.images import ImageSet
from imagekin.training.evaluation.evaluate import check_prepared, knn_accuracy
from imagekin.training.evaluation.linear_probe import linear_probe
from imagekin.training.export.artifact_head import held_out_rows
from imagekin.training.export.parity import check_parity

logger = logging.getLogger("imagekin.training")

_SAMPLE_COUNT = 256
# Settings of this machine, or of how the command was run.
_LOCAL = ("anyway", "cache_dir", "device")


@dataclass(frozen=True, slots=True)
class AdaptReport:
    """Results of an adaptation; accuracies are fractions of the held-out images.

    Attributes:
        model: the new artifact.
        space: id of its embedding space.
        knn_before: accuracy of nearest neighbours by the old embeddings.
        knn_after: likewise by the new ones.
        linear_before: accuracy of a linear probe of the old embeddings.
        linear_after: likewise of the new ones.
        image_count: images that were embedded.
        held_out_count: those of them that the scores are about.
        max_abs_diff: largest difference of a component between the file and the trained head.
        embed_seconds: time that embedding took.
        head_seconds: time that training and scoring took.
    """

    model: Path
    space: str
    knn_before: float
    knn_after: float
    linear_before: float
    linear_after: float
    image_count: int
    held_out_count: int
    max_abs_diff: float
    embed_seconds: float
    head_seconds: float

    def to_json(self) -> dict[str, JSON]:
        """Return the report as one flat JSON object."""
        return {**dataclasses.asdict(self), "model": str(self.model)}


def adapt(model: Path, images: ImageSet, out: Path, settings: AdaptSettings) -> AdaptReport:
    """Write an artifact whose embeddings are the old ones' adapted to the images' classes.

    Args:
        model: the artifact to adapt; not changed.
        images: labelled, and prepared as the artifact says.
        out: the file; one that exists is replaced.
        settings: of the adaptation.

    Raises:
        NotFoundError: there is no such model.
        InvalidArgumentError: it is no artifact or not of full precision, or the images cannot be learned from.
        FailedPreconditionError: the head does not help (unless `settings.anyway`), or the file is not the head.
    """
    encoder = Encoder.open(model, device=settings.device)
    metadata = encoder.metadata
    if metadata.precision != "float32":
        raise InvalidArgumentError(
            f"{model.name} is of {metadata.precision}; adapt the float32 model, then export its twin", field="model"
        )
    check_prepared(encoder, images)
    images, labels = _labelled(images)
    held_out = held_out_rows(labels, settings.seed)
    if not len(held_out):
        raise InvalidArgumentError("no class has two images; there is nothing to hold out and judge by", field="data")
    started = time.perf_counter()
    x = embed_views(encoder, images, settings.views, seed=settings.seed, cache_dir=settings.cache_dir)
    embedded = time.perf_counter()
    rest = np.setdiff1d(np.arange(len(images)), held_out)
    _, known = np.unique(labels[rest], return_inverse=True)
    trial = train_head(x[:, rest], known.astype(np.int64), settings)
    before = _accuracies(x[0], labels, rest, held_out, settings.seed)
    after = _accuracies(trial.apply_to(x[0]), labels, rest, held_out, settings.seed)
    _check_gain(before, after, model.name, anyway=settings.anyway)
    head = train_head(x, labels, settings)
    trained = time.perf_counter()
    adapted = dataclasses.replace(
        metadata,
        space=_space_of(metadata, head),
        class_names=(),
        objective=settings.objective,
        dataset=images.name,
        training=_training(metadata, settings),
        scores={"held_out_knn_before": before[0], "held_out_knn": after[0]},
    )
    difference = _write(model, head, adapted, images, x[0], labels, out)
    figures = (before[0], after[0], before[1], after[1], len(images), len(held_out), difference)
    return AdaptReport(out, adapted.space, *figures, embedded - started, trained - embedded)


def _labelled(images: ImageSet) -> tuple[ImageSet, NDArray[np.int64]]:
    """Return the images that have a class, and their classes from 0 on."""
    rows = np.flatnonzero(images.labels >= 0)
    if len(np.unique(images.labels[rows])) < 2:
        raise InvalidArgumentError(
            f"{images.name} needs images of at least two classes, in one folder for each", field="data"
        )
    if len(rows) < len(images):
        logger.warning("%d images without a class are left out", len(images) - len(rows))
        images = images.take(rows)
    _, labels = np.unique(images.labels, return_inverse=True)
    return images, labels.astype(np.int64)


def _accuracies(
    x: NDArray[np.float32], labels: NDArray[np.int64], rest: NDArray[np.int64], held_out: NDArray[np.int64], seed: int
) -> tuple[float, float]:
    """Return the accuracies of kNN and of a linear probe on the held-out rows, by the others."""
    known, asked = (x[rest], labels[rest]), (x[held_out], labels[held_out])
    linear, _ = linear_probe(*known, *asked, seed=seed)
    return knn_accuracy(*known, *asked), linear


def _check_gain(before: tuple[float, float], after: tuple[float, float], name: str, *, anyway: bool) -> None:
    """Raise FailedPreconditionError when the neighbours are no better than before, or warn if asked to go on."""
    if after[0] > before[0]:
        return
    said = (
        f"adapting {name} does not help: kNN accuracy on held-out images {before[0]:.2%} before, {after[0]:.2%} after"
    )
    if not anyway:
        raise FailedPreconditionError(f"{said}; nothing was written (--anyway writes it)")
    logger.warning("%s", said)


def _space_of(metadata: Metadata, head: ResidualHead) -> str:
    state = [(name, value.contiguous().numpy().tobytes()) for name, value in head.state_dict().items()]
    return artifact.new_space_id([("adapted from", metadata.space.encode()), *state])


def _training(metadata: Metadata, settings: AdaptSettings) -> dict[str, JSON]:
    own = {name: value for name, value in dataclasses.asdict(settings).items() if name not in _LOCAL}
    before = {"space": metadata.space, "objective": metadata.objective, "dataset": metadata.dataset}
    return {**own, "adapted_from": {**before, "training": dict(metadata.training)}}


def _write(
    model: Path,
    head: ResidualHead,
    metadata: Metadata,
    images: ImageSet,
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    out: Path,
) -> float:
    """Write the artifact if its embeddings of some images are the head's of theirs; return the largest difference."""
    rows = np.linspace(0, len(images) - 1, min(len(images), _SAMPLE_COUNT)).astype(np.int64)
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.new_folder(out.parent) as folder:
        unchecked = artifact.write(graft(artifact.load_graph(model), head), metadata, folder / out.name)
        given = Encoder.open(unchecked, device="cpu").embed_pixels(np.ascontiguousarray(images.pixels[rows]))
        difference, _ = check_parity(head.apply_to(embeddings[rows]), given, labels[rows])
        files.put_file(unchecked, out)
    return difference
