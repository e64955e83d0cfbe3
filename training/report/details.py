"""Details of a report: curves, confusion, nearest neighbours and a map of the embeddings.

Everything is computed from the exported file's embeddings, so it shows the served model. The test images shown are
drawn with a fixed seed, half of them from the mistakes, so they are not representative of the scores.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imagekin.encoder.metadata import JSON
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import FailedPreconditionError, NotFoundError
from imagekin.machine import Device
from imagekin.training.data.images import ImageSet
from imagekin.training.evaluation.evaluate import align_labels, knn_predict, nearest
from imagekin.training.settings import METRICS_FILE, REPORT_FILE

_STRIPS = 12
NEIGHBOURS = 8
_MAP_POINTS = 1000
_CONFUSED_PAIRS = 15
_PERPLEXITY = 30.0


@dataclass(frozen=True, slots=True)
class Strip:
    """A test image and the training images nearest to it.

    Attributes:
        query: row of the test image.
        predicted: class that kNN assigns to it.
        neighbours: rows of training images, nearest first.
        similarities: their cosines.
    """

    query: int
    predicted: int
    neighbours: tuple[int, ...]
    similarities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Details:
    """Details of a report beside the scores.

    Attributes:
        curves: the lines of `metrics.jsonl`.
        class_names: of the training images; classes below are positions in it.
        confusion: int64 [C, C], test images of class row that kNN assigns to class column.
        strips: test images with their nearest training images.
        map_rows: int64 [M], rows of the test images on the map.
        map_points: float32 [M, 2], their positions by t-SNE.
    """

    curves: tuple[dict[str, Any], ...]
    class_names: tuple[str, ...]
    confusion: NDArray[np.int64]
    strips: tuple[Strip, ...]
    map_rows: NDArray[np.int64]
    map_points: NDArray[np.float32]

    def most_confused(self) -> list[tuple[str, str, int]]:
        """Return (true class, predicted class, images) of the most frequent mistakes, most frequent first."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSED_PAIRS]
        pairs = [(int(place) // len(wrong), int(place) % len(wrong)) for place in order]
        names = self.class_names
        return [(names[true], names[taken], int(wrong[true, taken])) for true, taken in pairs if wrong[true, taken]]

    def to_json(self, train: ImageSet, test: ImageSet) -> dict[str, JSON]:
        """Return the details as one JSON object, with images by their keys."""
        names, labels = self.class_names, align_labels(train, test)
        strips: list[JSON] = [
            {
                "key": test.keys[strip.query],
                "label": names[labels[strip.query]],
                "predicted": names[strip.predicted],
                "neighbours": [
                    {"key": train.keys[row], "label": names[train.labels[row]], "similarity": round(similarity, 4)}
                    for row, similarity in zip(strip.neighbours, strip.similarities, strict=True)
                ],
            }
            for strip in self.strips
        ]
        points: list[JSON] = [
            {"key": test.keys[row], "label": names[labels[row]], "x": float(x), "y": float(y)}
            for row, (x, y) in zip(self.map_rows, self.map_points.round(3), strict=True)
        ]
        confused: list[JSON] = [
            {"label": true, "predicted": taken, "images": count} for true, taken, count in self.most_confused()
        ]
        return {
            "curves": list(self.curves),
            "class_names": list(names),
            "confusion": self.confusion.tolist(),
            "most_confused": confused,
            "neighbours": strips,
            "map": points,
        }


def collect(
    model: Path,
    curves: tuple[dict[str, Any], ...],
    train: ImageSet,
    test: ImageSet,
    *,
    device: Device = "auto",
    seed: int = 0,
) -> Details:
    """Embed both sets with a model artifact and compute the details of its report.

    Args:
        model: the artifact.
        curves: the lines of its run's metrics; none when it has no run.
        train: labelled images, prepared as the model's metadata say: the neighbours.
        test: labelled images of the same classes, prepared likewise: the queries.
        device: where ONNX Runtime runs.
        seed: of the draw of the test images shown, and of the map.

    Raises:
        NotFoundError: there is no such model.
        InvalidArgumentError: a set has no labels, or `test` has a class that `train` lacks.
        FailedPreconditionError: the images were prepared by other rules than the model's.
    """
    labels = align_labels(train, test)
    encoder = Encoder.open(model, device=device)
    if {train.preprocess, test.preprocess} != {encoder.metadata.preprocess}:
        raise FailedPreconditionError("the images were prepared by other rules than the model's metadata name")
    train_x, test_x = encoder.embed_pixels(train.pixels), encoder.embed_pixels(test.pixels)
    predicted = knn_predict(train_x, train.labels, test_x)
    confusion = np.zeros((len(train.class_names),) * 2, dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    random = np.random.default_rng(seed)
    shown = _draw_shown(predicted != labels, random)
    map_rows = np.sort(random.permutation(len(test_x))[:_MAP_POINTS])
    return Details(
        curves=curves,
        class_names=train.class_names,
        confusion=confusion,
        strips=_strips(shown, predicted, train_x, test_x),
        map_rows=map_rows,
        map_points=_map(test_x[map_rows], seed),
    )


def read_curves(run: Path) -> tuple[dict[str, Any], ...]:
    """Return the lines of the run's metrics, none when it has not trained."""
    path = run / METRICS_FILE
    return tuple(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()) if path.exists() else ()


def read_scores(run: Path) -> dict[str, Any]:
    """Return the run's `report.json`; raises NotFoundError when the run has none yet."""
    path = run / REPORT_FILE
    if not path.exists():
        raise NotFoundError(f"{run} has no {REPORT_FILE}; finish the run (--resume) or export it")
    scores: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return scores


def _draw_shown(wrong: NDArray[np.bool_], random: np.random.Generator) -> list[int]:
    """Draw the test images to show: up to half of them mistakes, mistakes last."""
    mistakes, others = (random.permutation(np.flatnonzero(rows)) for rows in (wrong, ~wrong))
    mistaken = mistakes[: max(_STRIPS // 2, _STRIPS - len(others))]
    return [*others[: _STRIPS - len(mistaken)].tolist(), *mistaken.tolist()]


def _strips(
    rows: list[int], predicted: NDArray[np.int64], train_x: NDArray[np.float32], test_x: NDArray[np.float32]
) -> tuple[Strip, ...]:
    cosines = torch.from_numpy(test_x[rows] @ train_x.T)
    similarities, neighbours = nearest(cosines, min(NEIGHBOURS, len(train_x)))
    return tuple(
        Strip(row, int(predicted[row]), tuple(near.tolist()), tuple(cosine.tolist()))
        for row, near, cosine in zip(rows, neighbours, similarities, strict=True)
    )


def _map(x: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Project embeddings [M, D] to a plane [M, 2] by t-SNE (van der Maaten and Hinton 2008), starting from PCA."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if len(x) < 5 or x.shape[1] < 2:
        flat = np.zeros((len(x), 2), dtype=np.float32)
        flat[:, : min(2, x.shape[1])] = x[:, :2]
        return flat
    with threadpool_limits(1):  # more threads would only slow down so small a job
        start = PCA(n_components=2, random_state=seed).fit_transform(x)
        start = start / max(float(start[:, 0].std()), 1e-12) * 1e-4
        perplexity = min(_PERPLEXITY, (len(x) - 1) / 3)
        tsne = TSNE(init=start.astype(np.float32), perplexity=perplexity, random_state=seed, n_jobs=1)
        return np.asarray(tsne.fit_transform(x), dtype=np.float32)
