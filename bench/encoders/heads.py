"""Compare objectives for adapting one encoder: accuracy, calibration, unknown classes and corrupted images.

    python bench/encoders/heads.py MODEL.onnx --train grocery-train.tar --test grocery-test.tar --out FOLDER
                                    [--objectives supcon,joint,…] [--seeds 0,1,2] [--limit N] [--corrupted N]

Everything is embedded once, and each row is a head on the same embeddings, so seeds and objectives cost seconds: what
`imagekin adapt` and `imagekin evaluate` compute, without a file between. Without `--test`, three tenths of each class
of `--train` are the test images. Unknown classes: every fourth class, by name, is taken out of the training images; the
head is trained anew without it, and the figure is the AUROC of test images of the other classes against these.
Corrupted images: some of the 15 corruptions, at severity 3, on `--corrupted` of the test images, evenly chosen.

Instead of a model and images, `--embedded X.npy,LABELS.npy,TEST.npy,LABELS.npy` takes embeddings; heads learn without
crops then, and no image is corrupted.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any, get_args

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from imagekin.encoder.runtime.session import Encoder
from imagekin.training.adaptation.residual_head import train_head
from imagekin.training.adaptation.settings import AdaptObjective, AdaptSettings
from imagekin.training.adaptation.view_embeddings import embed_views
from imagekin.training.data.images import ImageSet, load_images
from imagekin.training.evaluation.calibration import calibration
from imagekin.training.evaluation.corruptions import corrupt
from imagekin.training.evaluation.evaluate import align_labels, knn_accuracy
from imagekin.training.evaluation.linear_probe import LinearProbe, choose_penalty, stratified_split
from imagekin.training.evaluation.unknown import unknown_scores

CORRUPTIONS = ("gaussian_noise", "motion_blur", "brightness", "jpeg_compression")
SEVERITY = 3
SHOWN = ("knn", "linear", "knn_ece", "linear_ece", "knn_unknown", "linear_unknown", "knn_corrupted", "linear_corrupted")
Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Embedded:
    """A data set as one encoder sees it.

    Attributes:
        train: float32 [1 + views, N, D], images and crops of them.
        train_labels: [N], from 0 on, each occurs.
        test: [M, D].
        test_labels: [M].
        corrupted: embeddings of some test images by corruption, [K, D].
        corrupted_labels: their classes [K].
        cpu_seconds: that embedding training images took; 0 when they were cached.
    """

    train: Vectors
    train_labels: Labels
    test: Vectors
    test_labels: Labels
    corrupted: dict[str, Vectors]
    corrupted_labels: Labels
    cpu_seconds: float


def embed_all(options: argparse.Namespace) -> Embedded:
    """Embed both sets and the corrupted images, or read what an earlier call embedded."""
    options.out.mkdir(parents=True, exist_ok=True)
    encoder = Encoder.open(options.model, device="cpu")
    train, test = _load(options, encoder)
    train_labels, test_labels = train.labels, align_labels(train, test)
    names, train_labels = np.unique(train_labels, return_inverse=True)
    test_labels = np.searchsorted(names, test_labels)
    before = time.process_time()
    x = embed_views(encoder, train, options.views, cache_dir=options.out / "cache")
    spent = time.process_time() - before
    some = np.linspace(0, len(test) - 1, min(len(test), options.corrupted)).astype(np.int64)

    def cached(name: str, pixels: Callable[[], NDArray[np.uint8]]) -> Vectors:
        path = options.out / f"{name}.npy"
        if not path.exists():
            np.save(path, encoder.embed_pixels(pixels()))
        found: Vectors = np.load(path)
        return found

    def corrupted(name: str) -> Vectors:
        return cached(name, lambda: corrupt(test.pixels[some], name, SEVERITY))

    test_x = cached("test", lambda: test.pixels)
    harmed = {name: corrupted(name) for name in CORRUPTIONS}
    labels = train_labels.astype(np.int64)
    return Embedded(x, labels, test_x, test_labels, harmed, test_labels[some], spent)


def read_embedded(options: argparse.Namespace) -> Embedded:
    """Read embeddings and labels of test images and of training images, the first `--limit` of each class."""
    x, labels, test, test_labels = (np.load(path, allow_pickle=False) for path in options.embedded.split(","))
    names, labels = np.unique(labels, return_inverse=True)
    test_labels = np.searchsorted(names, test_labels)
    rows = _first_of_each(labels, options.limit)
    x, test = (np.ascontiguousarray(part, dtype=np.float32) for part in (x[rows], test))
    return Embedded(x[None], labels[rows], test, test_labels, {}, np.empty(0, np.int64), 0.0)


def measure(data: Embedded, objective: AdaptObjective | None, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train a head, or none, and return its figures, 0 to 1, and the CPU seconds of its training."""
    known_classes = np.flatnonzero(np.arange(data.train_labels.max() + 1) % 4 != 3)
    adapted, seconds = _head(data.train, data.train_labels, objective, seed, options.views)
    x, test = adapted(data.train[0]), adapted(data.test)
    penalty = choose_penalty(x, data.train_labels)
    probe = LinearProbe.fit(x, data.train_labels, penalty)
    errors = calibration(x, data.train_labels, test, data.test_labels, penalty=penalty)
    harmed = {name: adapted(vectors) for name, vectors in data.corrupted.items()}
    near = [knn_accuracy(x, data.train_labels, each, data.corrupted_labels) for each in harmed.values()]
    probed = [probe.accuracy(each, data.corrupted_labels) for each in harmed.values()]
    told = _unknown(data, known_classes, objective, seed, penalty, options.views)
    return {
        "knn": knn_accuracy(x, data.train_labels, test, data.test_labels),
        "linear": probe.accuracy(test, data.test_labels),
        "knn_ece": errors.knn_ece_scaled,
        "linear_ece": errors.linear_ece_scaled,
        "knn_unknown": told[0],
        "linear_unknown": told[1],
        "knn_corrupted": mean(near) if near else None,
        "linear_corrupted": mean(probed) if probed else None,
        "head_cpu_seconds": seconds,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all rows, print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--train", default="")
    parser.add_argument("--test", default="")
    parser.add_argument("--out", type=Path, default=Path("heads"))
    parser.add_argument("--embedded", default="")
    parser.add_argument("--objectives", type=lambda text: tuple(text.split(",")), default=get_args(AdaptObjective))
    parser.add_argument("--seeds", type=lambda text: tuple(map(int, text.split(","))), default=(0,))
    parser.add_argument("--limit", type=int, default=0, help="training images of each class; 0 is all")
    parser.add_argument("--corrupted", type=int, default=500)
    parser.add_argument("--views", type=int, default=2)
    options = parser.parse_args(arguments)
    if options.embedded:
        options.views = 0
    elif options.model is None or not options.train:
        parser.error("name a model and --train, or --embedded")
    data = read_embedded(options) if options.embedded else embed_all(options)
    shape = f"{len(data.train_labels)} + {len(data.test)} images, {data.train_labels.max() + 1} classes"
    print(f"{shape}, embedding the training images and crops: {data.cpu_seconds:.0f} CPU seconds", flush=True)
    table = Table("head", *SHOWN, "CPU seconds")
    results = []
    for objective in (None, *options.objectives):
        rows = [measure(data, objective, seed, options) for seed in (options.seeds if objective else (0,))]
        seconds = f"{mean(row['head_cpu_seconds'] for row in rows):.0f}"
        table.add_row(objective or "none", *(_cell([row[name] for row in rows]) for name in SHOWN), seconds)
        results += [{"head": objective or "none", "run": place, **row} for place, row in enumerate(rows)]
        print(json.dumps(results[-len(rows) :]), flush=True)
    Console(width=160).print(table)
    print(json.dumps(results))


def _cell(values: Sequence[float | None]) -> str:
    """Return the mean of the seeds in percent, and their standard deviation where there are several."""
    known = [100 * value for value in values if value is not None]
    spread = f" ± {pstdev(known):.1f}" if len(known) > 1 else ""
    return f"{mean(known):.1f}{spread}" if known else ""


def _load(options: argparse.Namespace, encoder: Encoder) -> tuple[ImageSet, ImageSet]:
    preprocess = encoder.metadata.preprocess
    train = load_images(options.train, preprocess=preprocess, limit=options.limit)
    if options.test:
        return train, load_images(options.test, preprocess=preprocess)
    rest, held_out = stratified_split(train.labels, 0.3, 0)
    return train.take(rest), train.take(held_out)


def _first_of_each(labels: Labels, limit: int) -> Labels:
    """Return the rows of the first `limit` of each class, ascending; 0 is all of them."""
    rows = [np.flatnonzero(labels == label)[: limit or None] for label in np.unique(labels)]
    return np.sort(np.concatenate(rows))


def _head(
    x: Vectors, labels: Labels, objective: AdaptObjective | None, seed: int, views: int
) -> tuple[Callable[[Vectors], Vectors], float]:
    """Train a head; return what it does to embeddings and the CPU seconds. None leaves them as they are."""
    if objective is None:
        return lambda vectors: vectors, 0.0
    before = time.process_time()
    head = train_head(x, labels, AdaptSettings(objective=objective, seed=seed, views=views))
    return head.apply_to, time.process_time() - before


def _unknown(
    data: Embedded, known: Labels, objective: AdaptObjective | None, seed: int, penalty: float, views: int
) -> tuple[float, float]:
    """Return the AUROCs of nearest neighbours and of the probe, with a head that has not seen the unknown classes."""
    rows = np.flatnonzero(np.isin(data.train_labels, known))
    labels = np.searchsorted(known, data.train_labels[rows])
    adapted, _ = _head(data.train[:, rows], labels, objective, seed, views)
    test = adapted(data.test)
    of_known = np.isin(data.test_labels, known)
    x = adapted(data.train[0][rows])
    told = unknown_scores(x, labels, test[of_known], test[~of_known], penalty=penalty)
    return told.knn_unknown_auroc, told.linear_unknown_auroc


if __name__ == "__main__":
    main()
