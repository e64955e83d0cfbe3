"""Score an encoder by nearest neighbours, a linear probe and retrieval on images that it was not trained on.

The metrics are plain functions of embeddings and labels. `evaluate_artifact` computes the embeddings with the exported
file through ONNX Runtime, so that the scores are those of the served model. Test labels are only compared with answers:
every choice is made on the training images.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from imagekin.encoder.metadata import JSON
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.machine import Device
from imagekin.progress import Advance, progress
from imagekin.training.data.images import ImageSet
from imagekin.training.evaluation.linear_probe import probe_predict
from imagekin.training.evaluation.per_class import ClassScore, score_classes

Features = NDArray[np.floating]
Labels = NDArray[np.integer]

# Similarities in memory at once: 128 MiB of float32.
BLOCK_ELEMENTS = 2**25
# Images between two steps of the progress bar.
EMBED_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of an evaluation; accuracies are fractions of the test images, 0 to 1.

    Those named macro are means over the classes, in which a small class counts as much as a large one.

    Attributes:
        knn_accuracy: weighted k-nearest-neighbour classification, see `knn_predict`.
        linear_accuracy: logistic regression on the standardised embeddings.
        knn_macro_accuracy: mean over the classes of the share of their test images that kNN classifies correctly.
        linear_macro_accuracy: likewise by the linear probe.
        recall_at_1: share of test images whose nearest other test image is of their class; None when every test
            image is alone in its class.
        map_at_r: mean average precision at R among the test images, see `retrieval`; None likewise.
        linear_c: inverse strength of the probe's L2 penalty, chosen on a split of the training images.
        knn_k: neighbours that vote.
        knn_temperature: temperature of their votes.
        train_count: training images, which are the neighbours and train the probe.
        test_count: test images.
        class_count: classes among the training images.
        embeddings_per_second: speed of the exported file, pixels in, embeddings out.
        per_class: scores of each class that has test images.
    """

    knn_accuracy: float
    linear_accuracy: float
    knn_macro_accuracy: float
    linear_macro_accuracy: float
    recall_at_1: float | None
    map_at_r: float | None
    linear_c: float
    knn_k: int
    knn_temperature: float
    train_count: int
    test_count: int
    class_count: int
    embeddings_per_second: float
    per_class: tuple[ClassScore, ...] = ()

    def to_json(self) -> dict[str, JSON]:
        """Return the scores as a JSON object."""
        return {**dataclasses.asdict(self), "per_class": [dataclasses.asdict(each) for each in self.per_class]}

    def for_metadata(self) -> dict[str, float]:
        """Return the scores that describe the weights, not the machine, for the model artifact."""
        names = (
            "knn_accuracy",
            "linear_accuracy",
            "knn_macro_accuracy",
            "linear_macro_accuracy",
            "recall_at_1",
            "map_at_r",
        )
        return {name: float(value) for name in names if (value := getattr(self, name)) is not None}


def evaluate_artifact(
    model: Path,
    train: ImageSet,
    test: ImageSet,
    *,
    k: int = 20,
    temperature: float = 0.07,
    device: Device = "auto",
    seed: int = 0,
) -> Scores:
    """Score the model artifact `model`: `train` gives the neighbours and trains the probe, `test` gives the queries.

    Args:
        model: the ONNX file.
        train: labelled images, prepared as the model's metadata say.
        test: labelled images of the same classes, prepared likewise.
        k: neighbours that vote; fewer when `train` is smaller.
        temperature: of their votes.
        device: `auto`, `cpu` or `cuda`.
        seed: of the split of `train` that the probe's penalty is chosen on.

    Returns:
        The scores.

    Raises:
        NotFoundError: there is no file `model`.
        InvalidArgumentError: it is no model artifact, a set has no labels, or `test` has a class that `train` lacks.
        FailedPreconditionError: the images were not prepared as the model's metadata say, or `device` is not there.
    """
    test_labels = align_labels(train, test)
    encoder = Encoder.open(model, device=device)
    check_prepared(encoder, train, test)
    train_x, test_x, _, rate = embed_both(encoder, train, test)
    scores = score(
        train_x,
        train.labels,
        test_x,
        test_labels,
        k=k,
        temperature=temperature,
        seed=seed,
        names=train.class_names,
    )
    return dataclasses.replace(scores, embeddings_per_second=rate)


def check_prepared(encoder: Encoder, *sets: ImageSet) -> None:
    """Raise FailedPreconditionError when a set's images were not prepared as the model's metadata say."""
    for images in sets:
        if images.preprocess != encoder.metadata.preprocess:
            raise FailedPreconditionError(
                f"the images of {images.name} were prepared by other rules than the model's metadata name; "
                "load them with the model's own preprocess"
            )


def embed_both(
    encoder: Encoder, train: ImageSet, test: ImageSet
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None, float]:
    """Return both sets' embeddings, float32 [N, D] and [M, D], the second's logits if any, and images per second."""
    encoder.embed_pixels(train.pixels[:64])  # warm-up, so that the speed below is that of a running service
    started = time.perf_counter()
    with progress("embedding", len(train) + len(test)) as advance:
        train_x = embed(encoder, train.pixels, advance)
        test_x, logits = outputs(encoder, test.pixels, advance)
    return train_x, test_x, logits, (len(train_x) + len(test_x)) / max(time.perf_counter() - started, 1e-9)


def score(
    train_x: Features,
    train_y: Labels,
    test_x: Features,
    test_y: Labels,
    *,
    k: int = 20,
    temperature: float = 0.07,
    seed: int = 0,
    names: Sequence[str] = (),
) -> Scores:
    """Score embeddings [N, D] and [M, D] with their classes [N] and [M], numbered alike; see `evaluate_artifact`.

    `names` are those of the classes, by number. The speed is left at 0.
    """
    test_y = np.asarray(test_y)
    recall, precision = retrieval(test_x, test_y)
    linear, penalty = probe_predict(train_x, train_y, test_x, seed=seed)
    knn = knn_predict(train_x, train_y, test_x, k=k, temperature=temperature)
    classes = score_classes(test_y, knn, linear, names)
    return Scores(
        knn_accuracy=float(np.mean(knn == test_y)),
        linear_accuracy=float(np.mean(linear == test_y)),
        knn_macro_accuracy=float(np.mean([each.knn_recall for each in classes])),
        linear_macro_accuracy=float(np.mean([each.linear_recall for each in classes])),
        recall_at_1=recall,
        map_at_r=precision,
        linear_c=penalty,
        knn_k=min(k, len(train_x)),
        knn_temperature=temperature,
        train_count=len(train_x),
        test_count=len(test_x),
        class_count=len(np.unique(train_y)),
        embeddings_per_second=0.0,
        per_class=classes,
    )


def align_labels(train: ImageSet, test: ImageSet) -> NDArray[np.int64]:
    """Renumber the labels of `test` [M] by `train`'s classes, matched by name.

    Raises:
        InvalidArgumentError: a set has no labels, or `test` has images of a class that `train` has none of.
    """
    for images in (train, test):
        if not len(images) or not images.class_names:
            raise InvalidArgumentError(f"{images.name} has no class folders; an evaluation needs labelled images")
    trained = {train.class_names[label]: int(label) for label in np.unique(train.labels)}
    present = [test.class_names[label] for label in np.unique(test.labels)]
    unknown = [name for name in present if name not in trained]
    if unknown:
        shown = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        raise InvalidArgumentError(
            f"the test images have {len(unknown)} of {len(present)} classes that the training images lack ({shown}): "
            "give both the same class folders, or see how such images are rejected (imagekin evaluate --unknown)"
        )
    numbers = np.array([trained.get(name, -1) for name in test.class_names], dtype=np.int64)
    return np.asarray(numbers[test.labels], dtype=np.int64)


def knn_accuracy(
    train_x: Features, train_y: Labels, test_x: Features, test_y: Labels, *, k: int = 20, temperature: float = 0.07
) -> float:
    """Return the share of `test_x` [M, D] that `knn_predict` classifies as `test_y` [M]; arguments as there."""
    predicted = knn_predict(train_x, train_y, test_x, k=k, temperature=temperature)
    return float(np.mean(predicted == np.asarray(test_y)))


def knn_predict(
    train_x: Features, train_y: Labels, test_x: Features, *, k: int = 20, temperature: float = 0.07
) -> NDArray[np.int64]:
    """Classify by the votes of the k nearest neighbours, each weighing exp(cosine / temperature).

    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4.

    Args:
        train_x: [N, D] float, the neighbours; of any length, only directions count.
        train_y: [N] int >= 0, their classes.
        test_x: [M, D] float, what to classify.
        k: how many neighbours vote; all when there are fewer.
        temperature: the lower, the more weight the nearest have.

    Returns:
        [M] int64 classes. Ties of neighbours go to the lower row of `train_x`, ties of classes to the lower class.

    Raises:
        InvalidArgumentError: k or temperature is not positive, or there are no neighbours.
    """
    predicted = np.empty(len(test_x), dtype=np.int64)
    for rows, votes in _vote_blocks(train_x, train_y, test_x, k, temperature):
        predicted[rows] = votes.numpy().argmax(axis=1)
    return predicted


def knn_votes(
    train_x: Features, train_y: Labels, test_x: Features, *, k: int = 20, temperature: float = 0.07
) -> NDArray[np.float64]:
    """Return each class's share of the votes, float64 [M, highest class + 1]; arguments as in `knn_predict`."""
    parts = [votes / votes.sum(1, keepdim=True) for _, votes in _vote_blocks(train_x, train_y, test_x, k, temperature)]
    return np.concatenate([part.numpy() for part in parts])


def retrieval(x: Features, y: Labels) -> tuple[float | None, float | None]:
    """Return Recall@1 and MAP@R of each image searched among all the others.

    With R the number of other images of a query's class and P(i) the precision of its first i neighbours, MAP@R is the
    mean over queries of 1/R · Σ_{i ≤ R} P(i)·[neighbour i is of the class]: 1 only when all R come first.
    Source: Musgrave et al. 2020, "A Metric Learning Reality Check", section 3.2. Queries that are alone in their class
    have no right answer and are left out.

    Args:
        x: [N, D] float embeddings; of any length, only directions count.
        y: [N] int classes.

    Returns:
        Both in [0, 1]; None when every image is alone in its class.
    """
    points = _directions(x)
    _, classes, sizes = np.unique(np.asarray(y), return_inverse=True, return_counts=True)
    labels = torch.from_numpy(classes.reshape(-1))
    others = torch.from_numpy(sizes[classes.reshape(-1)] - 1)
    asked = torch.nonzero(others > 0)[:, 0]
    if len(asked) == 0:
        return None, None
    depth = int(others.max())
    ranks = torch.arange(1, depth + 1, dtype=torch.float64)
    hits = 0
    precision = 0.0
    for rows in _blocks(len(asked), len(points) + 4 * depth):
        queries = asked[rows]
        similarities = points[queries] @ points.T
        similarities[torch.arange(len(queries)), queries] = -torch.inf
        _, neighbours = nearest(similarities, depth)
        wanted = others[queries][:, None]
        right = (labels[neighbours] == labels[queries][:, None]) & (ranks <= wanted)
        hits += int(right[:, 0].sum())
        precision += float((right.cumsum(1) / ranks * right / wanted).sum())
    return hits / len(asked), precision / len(asked)


def nearest(similarities: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k highest of each row, descending, and their columns [Q, k]; ties go to the lowest column.

    `topk` alone does not define the order of equal values, so rows with ties are sorted again by a stable sort.
    """
    reach = min(k + 1, similarities.shape[1])
    values, columns = similarities.topk(reach, dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1)
    if bool(tied.any()):
        columns[tied] = similarities[tied].sort(dim=1, descending=True, stable=True).indices[:, :reach]
    return values[:, :k], columns[:, :k]


def nearest_similarities(train_x: Features, x: Features, *, itself: bool = True) -> NDArray[np.float32]:
    """Return the cosine of each row of `x` [M, D] to the nearest row of `train_x` [N, D], float32 [M].

    Without `itself`, `x` is `train_x` and each row's nearest is another one; N >= 2 then.
    """
    gallery, queries = _directions(train_x), _directions(x)
    found = np.empty(len(queries), dtype=np.float32)
    for rows in _blocks(len(queries), len(gallery)):
        similarities = queries[rows] @ gallery.T
        if not itself:
            places = torch.arange(len(similarities))
            similarities[places, places + rows.start] = -torch.inf
        found[rows] = similarities.amax(1).numpy()
    return found


def outputs(
    encoder: Encoder, pixels: NDArray[np.uint8], advance: Advance | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Run a model on pixels uint8 [N, H, W, 3] in pieces, so that progress shows: embeddings, and logits if any."""
    parts = []
    for start in range(0, max(len(pixels), 1), EMBED_BATCH):
        parts.append(encoder.run(pixels[start : start + EMBED_BATCH]))
        if advance is not None:
            advance(len(parts[-1].embeddings))
    logits = [part.logits for part in parts if part.logits is not None]
    return np.concatenate([part.embeddings for part in parts]), np.concatenate(logits) if logits else None


def embed(encoder: Encoder, pixels: NDArray[np.uint8], advance: Advance | None = None) -> NDArray[np.float32]:
    """Embed pixels uint8 [N, H, W, 3] in pieces, so that progress shows: float32 [N, D]."""
    return outputs(encoder, pixels, advance)[0]


def _vote_blocks(
    train_x: Features, train_y: Labels, test_x: Features, k: int, temperature: float
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield blocks of rows of `test_x` with the votes of each class, float64 [rows, C]."""
    if k < 1 or not temperature > 0 or len(train_x) == 0:
        raise InvalidArgumentError("kNN needs k of at least 1, a temperature above 0 and at least one neighbour")
    gallery, queries = _directions(train_x), _directions(test_x)
    classes = torch.from_numpy(np.asarray(train_y, dtype=np.int64))
    class_count = int(classes.max()) + 1
    for rows in _blocks(len(queries), len(gallery) + class_count):
        similarities, neighbours = nearest(queries[rows] @ gallery.T, min(k, len(gallery)))
        # Relative to the nearest, so that no temperature overflows; in float64, so that equal votes have equal sums.
        weights = ((similarities - similarities[:, :1]).double() / temperature).exp()
        votes = torch.zeros(len(weights), class_count, dtype=torch.float64)
        votes.scatter_add_(1, classes[neighbours], weights)
        yield rows, votes


def _directions(x: Features) -> torch.Tensor:
    """Return the rows of `x` as float32 of unit length; a zero row stays zero."""
    rows = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    return torch.nn.functional.normalize(rows, dim=1, eps=1e-12)


def _blocks(count: int, width: int) -> Iterator[slice]:
    """Yield slices of `count` rows, each small enough for `width` values a row to stay within BLOCK_ELEMENTS."""
    step = max(1, BLOCK_ELEMENTS // width)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
