"""Export a trained encoder as a model artifact, and refuse to when the file's embeddings differ from the encoder's.

ONNX Runtime runs the exported file on real images, and so does torch the encoder. The file gets its name only if both
give the same embeddings and the same nearest neighbours.
"""

import copy
import json
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from imagekin import files
from imagekin.encoder import artifact
from imagekin.encoder.metadata import JSON, Metadata
from imagekin.encoder.runtime import session
from imagekin.errors import InvalidArgumentError
from imagekin.training.data.arrays import Split
from imagekin.training.data.identity import Identity
from imagekin.training.data.images import ImageSet, has_split, load_images
from imagekin.training.data.overlap import Overlap, without_overlap
from imagekin.training.data.storage import Storage
from imagekin.training.evaluation.evaluate import Labels, Scores, align_labels, evaluate_artifact
from imagekin.training.export.linear_head import fit_head
from imagekin.training.export.onnx_graph import ServedEncoder, to_onnx
from imagekin.training.export.parity import check_logits, check_parity, torch_embeddings
from imagekin.training.loop.checkpoint import Run, load_run
from imagekin.training.models.encoders import Backbone, Normalisation
from imagekin.training.settings import MODEL_FILE, REPORT_FILE

logger = logging.getLogger("imagekin.training")

_SAMPLE_COUNT = 1000
"""Images that a run's export is checked on: the fewest of which one wrong answer is still 99.9 % agreement."""

# Settings that name paths of the training machine, or how that machine was used.
_LOCAL_SETTINGS = ("data", "test", "out", "weights", "device", "data_on", "cache_dir", "threads", "checkpoint_seconds")


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Differences between the exported file and the torch encoder.

    Attributes:
        max_abs_diff: largest difference of any component of any embedding.
        knn_agreement: share of images with the same nearest-neighbour answer, 0 to 1.
        sample_count: real images that both were run on.
        seconds: time that conversion and check took.
    """

    max_abs_diff: float
    knn_agreement: float
    sample_count: int
    seconds: float

    def to_json(self) -> dict[str, float | int]:
        """Return the report as a JSON object with the project's names."""
        return {
            "onnx_max_abs_diff": self.max_abs_diff,
            "onnx_knn_agreement": self.knn_agreement,
            "onnx_sample_count": self.sample_count,
            "export_seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class RunReport:
    """Results of a run; also written to its folder as `report.json`.

    Attributes:
        model: the model artifact.
        space: id of its embedding space.
        dim: components of its embeddings.
        parity: how close the file is to the torch encoder.
        scores: its scores on the test images; None when there are none.
        overlap: test images that are training images, too; None when there are no scores.
        data: identity of the images that are the neighbours; `recorded` says whether the run was trained on these.
        test: identity of the test images that the scores count; empty when there are none.
        recorded: whether the run has a record of its training images, and it names these; None without a record.
        epochs: planned.
        epochs_done: trained.
        head_accuracy: share of test images that the file's own logits classify correctly; None without head or images.
    """

    model: Path
    space: str
    dim: int
    parity: ExportReport
    scores: Scores | None
    head_accuracy: float | None = None
    overlap: Overlap | None = None
    data: str = ""
    test: str = ""
    recorded: bool | None = None
    epochs: int = 0
    epochs_done: int = 0

    def to_json(self) -> dict[str, JSON]:
        """Return the report as one flat JSON object; `model` is relative to the run's folder."""
        scores = {} if self.scores is None else self.scores.to_json()
        head = {} if self.head_accuracy is None else {"head_accuracy": self.head_accuracy}
        overlap = {} if self.overlap is None else self.overlap.to_json()
        file: dict[str, JSON] = {
            "model": self.model.name,
            "space": self.space,
            "dim": self.dim,
            "finished": self.epochs_done >= self.epochs,
            "epochs_planned": self.epochs,
            "epochs_done": self.epochs_done,
            "data_id": self.data,
            "data_as_recorded": self.recorded,
            "test_id": self.test,
        }
        return {**file, **self.parity.to_json(), **scores, **head, **overlap}


def space_of(encoder: nn.Module, normalisation: Normalisation) -> str:
    """Return the id of the embedding space of these weights: equal weights, equal id.

    The normalisation counts as weights. BatchNorm's step counters do not, because no embedding depends on them.
    """
    state = {name: value for name, value in encoder.state_dict().items() if not name.endswith("num_batches_tracked")}
    state["normalisation"] = torch.tensor([normalisation.mean, normalisation.std])
    return artifact.new_space_id((name, value.cpu().contiguous().numpy().tobytes()) for name, value in state.items())


def export(
    encoder: Backbone,
    normalisation: Normalisation,
    metadata: Metadata,
    sample_pixels: NDArray[np.uint8],
    sample_labels: Labels | None,
    out: Path,
    *,
    head: nn.Linear | None = None,
) -> ExportReport:
    """Write the model artifact `out` if it agrees with the encoder; otherwise raise and leave nothing behind.

    Args:
        encoder: on any device, in any mode; not changed.
        normalisation: the one that it was trained with.
        metadata: the file's metadata; `space` must be `space_of(encoder, normalisation)`.
        sample_pixels: uint8 [N, H, W, 3], N >= 2 real images, prepared as `metadata.preprocess` says.
        sample_labels: int [N]; nearest-neighbour answers agree when the labels do; None compares the neighbours.
        out: the file; one that exists is replaced.
        head: linear layer from embedding to logits, one for each of `metadata.class_names`.

    Returns:
        The differences between file and encoder.

    Raises:
        InvalidArgumentError: the metadata belong to another encoder, or there are fewer than two sample images.
        FailedPreconditionError: the encoder cannot be converted, or the file's answers differ too much.
    """
    started = time.perf_counter()
    if metadata.space != space_of(encoder, normalisation) or metadata.dim != encoder.feature_dim:
        raise InvalidArgumentError("the metadata name another embedding space than the encoder's; use space_of")
    if len(sample_pixels) < 2:
        raise InvalidArgumentError("an export is checked on real images; give at least two")
    plain = copy.deepcopy(encoder).cpu().float().eval()
    plain_head = None if head is None else copy.deepcopy(head).cpu().float()
    model = to_onnx(ServedEncoder(plain, normalisation, plain_head).eval(), sample_pixels)
    labels = np.arange(len(sample_pixels)) if sample_labels is None else np.asarray(sample_labels)
    out.parent.mkdir(parents=True, exist_ok=True)
    # In a folder beside it: the file has its final name already, for messages, and the move is atomic.
    with files.new_folder(out.parent) as folder:
        unchecked = artifact.write(model, metadata, folder / out.name)
        reference = torch_embeddings(plain, normalisation, sample_pixels)
        outputs = session.Encoder.open(unchecked, device="cpu").run(sample_pixels)
        difference, agreement = check_parity(reference, outputs.embeddings, labels)
        if plain_head is not None and outputs.logits is not None:
            check_logits(plain_head, reference, outputs.logits)
        files.put_file(unchecked, out)
    return ExportReport(difference, agreement, len(sample_pixels), time.perf_counter() - started)


def export_run(
    run_dir: Path,
    *,
    train: ImageSet | None = None,
    test: ImageSet | None = None,
    data: str = "",
    test_data: str = "",
    page: bool = False,
    head: bool = False,
    near: bool = False,
    allow_overlap: bool = False,
) -> RunReport:
    """Export a run's last checkpoint to its `model.onnx`, score that file, and write both reports to `report.json`.

    The scores are written to the artifact's metadata as well. Without test images or labels there are none.

    Args:
        run_dir: the run's folder.
        train: the run's training images, prepared as the encoder is served; loaded when None.
        test: test images, likewise; loaded when None.
        data: path of the training images, if they have moved since the run.
        test_data: likewise for the test images.
        page: also write `report.html` and `details.json`, where there are scores.
        head: fit a linear head to the training images' embeddings, which gives the file an output `logits`.
        near: look for near-duplicates among the test images even if the run's settings do not say so.
        allow_overlap: likewise count test images that are training images, too.

    Raises:
        NotFoundError: the folder holds no checkpoint, or the images are gone.
        DataLossError: the checkpoint is damaged.
        InvalidArgumentError: the test images have classes that the training images lack, or all of them are training
            images.
        FailedPreconditionError: the exported file differs from the encoder; nothing was written.
    """
    run = load_run(run_dir)
    data = data or run.settings.data
    told = train is not None and test is not None  # whoever loaded them compared them
    if train is None:
        train = _load(run, data, "train", limit=run.settings.limit)
    if test is None:
        test = _load_test(run, data, test_data or run.settings.test)
    scored = test is not None and bool(train.class_names) and bool(test.class_names)
    if run.position.epoch < run.settings.epochs:
        logger.warning(
            "%s is unfinished: %d of %d epochs; go on with it (--resume)",
            run_dir,
            run.position.epoch,
            run.settings.epochs,
        )
    data_id, recorded = Identity.of(train).id, Identity.read(run_dir)
    overlap = None
    if test is not None and scored:
        align_labels(train, test)  # before the work, not after it
        test, overlap = without_overlap(
            train,
            test,
            near=near or run.settings.near,
            allowed=allow_overlap or run.settings.allow_overlap,
            trained_on=recorded.digests if recorded else frozenset(),
            quiet=told,
        )
    metadata = Metadata(
        space=space_of(run.encoder, run.normalisation),
        dim=run.encoder.feature_dim,
        preprocess=run.preprocess,
        objective=run.settings.objective,
        dataset=run.data_name,
        training=_training(run),
    )
    linear = None
    if head:
        linear, names = _fit_head(run, train)
        metadata = replace(metadata, class_names=names)
    sample = train.take(np.linspace(0, len(train) - 1, min(len(train), _SAMPLE_COUNT)).astype(np.int64))
    labels = sample.labels if train.class_names else None
    out = run_dir / MODEL_FILE
    parity = export(run.encoder, run.normalisation, metadata, sample.pixels, labels, out, head=linear)
    scores, accuracy = None, None
    if test is not None and scored:
        scores = evaluate_artifact(out, train, test, seed=run.settings.seed)
        figures = scores.for_metadata()
        if head:
            figures["head_accuracy"] = accuracy = _head_accuracy(out, test)
        artifact.write(artifact.load_graph(out), replace(metadata, scores=figures), out)
    report = RunReport(
        out,
        metadata.space,
        metadata.dim,
        parity,
        scores,
        accuracy,
        overlap,
        data_id,
        Identity.of(test).id if test is not None and scored else "",
        None if recorded is None else recorded.id == data_id,
        run.settings.epochs,
        run.position.epoch,
    )
    files.write_text(run_dir / REPORT_FILE, json.dumps(report.to_json(), indent=2) + "\n")
    if page and test is not None and scored:
        from imagekin.training.report.page import write_report  # only here: it loads a drawing library

        write_report(run_dir, train, test, overlap=overlap)
    return report


def _fit_head(run: Run, train: ImageSet) -> tuple[nn.Linear, tuple[str, ...]]:
    """Fit a linear head to the training images, and return it with the names of the classes that have images."""
    if not train.class_names:
        raise InvalidArgumentError(f"a linear head needs labels, and {train.name} has no class folders", field="head")
    present, labels = np.unique(train.labels, return_inverse=True)
    embeddings = torch_embeddings(run.encoder, run.normalisation, train.pixels)
    linear, _ = fit_head(embeddings, labels, seed=run.settings.seed)
    return linear, tuple(train.class_names[label] for label in present)


def _head_accuracy(model: Path, test: ImageSet) -> float:
    """Return the share of labelled test images that the artifact's own logits classify correctly."""
    encoder = session.Encoder.open(model, device="cpu")
    logits = encoder.run(np.asarray(test.pixels)).logits
    if logits is None:
        raise InvalidArgumentError(f"{model.name} has no linear head")
    names = np.array(encoder.metadata.class_names)
    return float(np.mean(names[logits.argmax(1)] == np.array(test.class_names)[test.labels]))


def _load(run: Run, spec: str, split: Split, *, limit: int = 0) -> ImageSet:
    """Load images as the run's encoder is served them; `split` applies where the source has one."""
    settings = run.settings
    part = split if has_split(spec, settings.label_from) else "all"
    storage = Storage(settings.data_on, settings.cache_dir)
    return load_images(
        spec, split=part, limit=limit, preprocess=run.preprocess, storage=storage, label_from=settings.label_from
    )


def _load_test(run: Run, data: str, test_data: str) -> ImageSet | None:
    """Load the test images: those named, else those of the training data, else none."""
    if test_data:
        return _load(run, test_data, "test")
    return _load(run, data, "test") if has_split(data, run.settings.label_from) else None


def _training(run: Run) -> dict[str, JSON]:
    """Return the artifact's record of its training, without paths of the machine that it was trained on."""
    settings = {name: value for name, value in run.settings.to_dict().items() if name not in _LOCAL_SETTINGS}
    return {
        **settings,
        "pretrained": run.settings.weights is not None,
        "steps_done": run.position.step,
        "finished": run.position.epoch >= run.settings.epochs,
    }
