"""Flip labels and compare the first suspects of a review with those of cleanlab, on the same embeddings.

    python bench/review/label_errors.py --collection groceries --data-dir DATA [--seeds 0,1,2] [--share 0.05]
    python bench/review/label_errors.py --embeddings E.npy --labels L.npy [--first 10000]

N labels are changed to another class at random. Of the first N suspects of each ranking the share is given that was
changed, which at N is precision and recall at once; then recall of the first 2 N. cleanlab gets probabilities out of
sample from five-fold cross-validation, of logistic regression and of k nearest neighbours, and ranks by each of its
scores. It is no dependency: run this in an environment that has it and scikit-learn; elsewhere its rows are left out.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from numpy.typing import NDArray

from imagekin.index.review.findings import Gatherer
from imagekin.index.review.opinions import Judge
from imagekin.index.review.review import AT_ONCE, Options
from imagekin.types import Neighbour

_ROWS_AT_ONCE = 512
_FOLDS = 5
_SCORES = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")


def load(given: argparse.Namespace) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return embeddings of unit length and the numbers of their classes."""
    if given.collection:
        from imagekin import Client

        with Client.local(given.data_dir, read_only=True) as client:
            items = [
                one for one in client.scroll(given.collection, with_vector=True) if one.label and "--" not in one.key
            ]
        vectors, names = np.array([one.vector for one in items], np.float32), np.array([one.label for one in items])
    else:
        vectors, names = np.load(given.embeddings)[: given.first], np.load(given.labels)[: given.first]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), np.unique(names, return_inverse=True)[1].astype(np.int64)


def nearest(vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the k nearest others of each item and their similarities, most similar first."""
    found, near = [], []
    for at in range(0, len(vectors), _ROWS_AT_ONCE):
        similarities = vectors[at : at + _ROWS_AT_ONCE] @ vectors.T
        rows = np.arange(len(similarities))
        similarities[rows, at + rows] = -2
        best = np.argpartition(-similarities, k, axis=1)[:, :k]
        values = np.take_along_axis(similarities, best, 1)
        order = np.argsort(-values, axis=1)
        found.append(np.take_along_axis(best, order, 1))
        near.append(np.take_along_axis(values, order, 1))
    return np.concatenate(found), np.concatenate(near)


def by_review(
    vectors: NDArray[np.float32],
    keys: NDArray[np.int64],
    near: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    linear: bool,
) -> list[int]:
    """Return the suspects of a review, the surest first."""
    gatherer, judge = Gatherer(), Judge(linear=linear)
    names = [f"class {number}" for number in labels]
    judge.learn(vectors, names)
    for at in range(0, len(names), AT_ONCE):
        some = slice(at, at + AT_ONCE)
        neighbours = [
            [Neighbour(str(key), similarity, names[key]) for key, similarity in zip(row, similarities, strict=True)]
            for row, similarities in zip(keys[some].tolist(), near[some].tolist(), strict=True)
        ]
        opinions = judge.opinions(vectors[some], names[some], neighbours)
        for item, (one, opinion) in enumerate(zip(neighbours, opinions, strict=True), at):
            gatherer.add(str(item), names[item], one, opinion)
    return [int(one.key) for one in gatherer.labels()]


def by_cleanlab(vectors: NDArray[np.float32], labels: NDArray[np.int64]) -> Iterator[tuple[str, list[int], float]]:
    """Yield each of cleanlab's rankings with its name and the seconds that its probabilities took."""
    try:
        rank: Any = importlib.import_module("cleanlab.rank")
        linear: Any = importlib.import_module("sklearn.linear_model")
        near: Any = importlib.import_module("sklearn.neighbors")
        selection: Any = importlib.import_module("sklearn.model_selection")
    except ImportError as error:
        print(f"left out: cleanlab ({error})")
        return
    models = {
        "logistic": linear.LogisticRegression(C=10.0, max_iter=300),
        "k-NN": near.KNeighborsClassifier(n_neighbors=10, weights="distance", metric="cosine", algorithm="brute"),
    }
    for name, model in models.items():
        began = time.monotonic()
        probabilities = selection.cross_val_predict(model, vectors, labels, cv=_FOLDS, method="predict_proba")
        seconds = time.monotonic() - began
        for score in _SCORES:
            adjust = score != "confidence_weighted_entropy"
            for adjusted in (False, True) if adjust else (False,):
                quality = rank.get_label_quality_scores(labels, probabilities, method=score, adjust_pred_probs=adjusted)
                title = f"cleanlab {name}, {score}{', adjusted' if adjusted else ''}"
                yield title, np.argsort(quality, kind="stable").tolist(), seconds


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collection")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--embeddings", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--first", type=int)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    vectors, true = load(given)
    began = time.monotonic()
    keys, near = nearest(vectors, Options().neighbours)
    searched = time.monotonic() - began
    count = round(given.share * len(true))
    print(f"{len(true)} items of {true.max() + 1} classes, {count} labels changed; seeds {given.seeds}")
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in map(int, given.seeds.split(",")):
        random = np.random.default_rng(seed)
        changed = random.choice(len(true), count, replace=False)
        labels = true.copy()
        labels[changed] = (labels[changed] + random.integers(1, true.max() + 1, count)) % (true.max() + 1)
        rankings: list[tuple[str, list[int], float]] = []
        for name, linear in (("imagekin review", True), ("its neighbours alone", False)):
            began = time.monotonic()
            ours = by_review(vectors, keys, near, labels, linear=linear)
            rankings.append((name, ours, searched + time.monotonic() - began))
        rankings += by_cleanlab(vectors, labels)
        wrong = set(changed.tolist())
        for title, ranked, seconds in rankings:
            shares = [len(wrong & set(ranked[: n * count])) / count for n in (1, 2)]
            found.setdefault(title, []).append((shares[0], shares[1], seconds))
    for name, rows in sorted(found.items(), key=lambda one: -float(np.mean([row[0] for row in one[1]]))):
        first, second, seconds = np.mean(rows, axis=0)
        print(f"| {name} | {first:.3f} | {second:.3f} | {seconds:.1f} s |")


if __name__ == "__main__":
    main()
