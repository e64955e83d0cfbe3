"""The metrics are what their definitions say, and an evaluation is one of the exported file and of nothing else."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from imagekin.encoder.metadata import Preprocess, Resize
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from imagekin.training.data.images import ImageSet
from imagekin.training.evaluation import evaluate, linear_probe
from tests.artifacts import tiny_artifact

Points = NDArray[np.float64]
Classes = NDArray[np.int64]
# Few directions, each with exact products: equal similarities are common and truly equal.
axes = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=2, max_size=12)


def one_hot(rows: Sequence[tuple[int, int]]) -> tuple[Points, Classes]:
    """Return points on coordinate axes and their classes."""
    return np.eye(4)[[axis for axis, _ in rows]], np.array([label for _, label in rows])


def clusters(seed: int, *, count: int, classes: int, spread: float) -> tuple[Points, Classes]:
    """Return `count` noisy copies of `classes` random directions in 16 dimensions, and which one each is."""
    centres = np.random.default_rng(0).normal(size=(classes, 16))
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=count)
    return centres[labels] + spread * random.normal(size=(count, 16)), labels


def slow_knn(train_x: Points, train_y: Classes, test_x: Points, k: int, temperature: float) -> list[int]:
    """Wu et al.'s definition, one query and one neighbour at a time."""
    answers = []
    for query in test_x:
        cosines = [float(x @ query / np.linalg.norm(x) / np.linalg.norm(query)) for x in train_x]
        order = sorted(range(len(train_x)), key=lambda index: (-cosines[index], index))
        votes = [0.0] * (int(train_y.max()) + 1)
        for index in order[:k]:
            votes[int(train_y[index])] += float(np.exp(cosines[index] / temperature))
        answers.append(votes.index(max(votes)))
    return answers


def slow_retrieval(x: Points, y: Classes) -> tuple[float, float]:
    """Musgrave et al.'s definitions, one query and one rank at a time."""
    hits, precisions = [], []
    for query in range(len(x)):
        others = [index for index in range(len(x)) if index != query]
        wanted = sum(y[index] == y[query] for index in others)
        if not wanted:
            continue
        cosines = x @ x[query] / np.linalg.norm(x, axis=1) / np.linalg.norm(x[query])
        order = sorted(others, key=lambda index: (-cosines[index], index))
        right = [y[index] == y[query] for index in order]
        hits.append(right[0])
        ranks = range(1, wanted + 1)
        precisions.append(sum(sum(right[:rank]) / rank * right[rank - 1] for rank in ranks) / wanted)
    return float(np.mean(hits)), float(np.mean(precisions))


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 1.0), (1000, 0.5)])
def test_knn_is_the_papers_definition(k: int, temperature: float) -> None:
    train_x, train_y = clusters(1, count=120, classes=7, spread=2.0)
    test_x, _ = clusters(2, count=50, classes=7, spread=2.0)
    predicted = evaluate.knn_predict(train_x, train_y, test_x, k=k, temperature=temperature)
    assert predicted.tolist() == slow_knn(train_x, train_y, test_x, k, temperature)


def test_knn_agrees_with_scikit_learn_on_votes_of_equal_weight() -> None:
    train_x, train_y = clusters(1, count=300, classes=2, spread=3.0)
    test_x, test_y = clusters(2, count=200, classes=2, spread=3.0)
    peer = KNeighborsClassifier(n_neighbors=5, metric="cosine").fit(train_x, train_y)
    ours = evaluate.knn_predict(train_x, train_y, test_x, k=5, temperature=1e6)
    assert ours.tolist() == peer.predict(test_x).tolist()
    accuracy = evaluate.knn_accuracy(train_x, train_y, test_x, test_y, k=5, temperature=1e6)
    assert accuracy == pytest.approx(peer.score(test_x, test_y))


@settings(deadline=None, max_examples=50)
@given(train=axes, test=axes, k=st.integers(1, 13))
def test_equal_neighbours_enter_in_their_order_and_equal_votes_go_to_the_lowest_class(
    train: list[tuple[int, int]], test: list[tuple[int, int]], k: int
) -> None:
    train_x, train_y = one_hot(train)
    test_x, _ = one_hot(test)
    predicted = evaluate.knn_predict(train_x, train_y, test_x, k=k, temperature=1.0)
    assert predicted.tolist() == slow_knn(train_x, train_y, test_x, k, 1.0)


def test_only_directions_count_and_no_temperature_overflows() -> None:
    train_x, train_y = clusters(1, count=60, classes=5, spread=2.0)
    test_x, _ = clusters(2, count=30, classes=5, spread=2.0)
    lengths = np.random.default_rng(0).uniform(0.1, 100, size=(60, 1))
    plain = evaluate.knn_predict(train_x, train_y, test_x, temperature=1e-4)
    assert plain.tolist() == evaluate.knn_predict(train_x * lengths, train_y, 7 * test_x, temperature=1e-4).tolist()
    assert plain.tolist() == evaluate.knn_predict(train_x, train_y, test_x, k=1).tolist()


def test_the_block_size_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = clusters(1, count=90, classes=4, spread=2.0)
    whole = evaluate.knn_predict(x, y, x[:40]), evaluate.retrieval(x, y)
    monkeypatch.setattr(evaluate, "BLOCK_ELEMENTS", 700)
    assert evaluate.knn_predict(x, y, x[:40]).tolist() == whole[0].tolist()
    assert evaluate.retrieval(x, y) == pytest.approx(whole[1])


def test_retrieval_is_the_papers_definition() -> None:
    x, y = clusters(3, count=80, classes=9, spread=1.5)
    y[0] = 100  # alone in its class: has no right answer and does not count
    assert evaluate.retrieval(x, y) == pytest.approx(slow_retrieval(x, y))


@settings(deadline=None, max_examples=50)
@given(points=axes)
def test_retrieval_with_ties_is_the_definition_in_the_order_of_the_images(points: list[tuple[int, int]]) -> None:
    x, y = one_hot(points)
    if len(set(y.tolist())) == len(y):
        assert evaluate.retrieval(x, y) == (None, None)
    else:
        assert evaluate.retrieval(x, y) == pytest.approx(slow_retrieval(x, y))


def test_a_perfect_encoder_scores_one_and_meaningless_labels_score_chance() -> None:
    train_x, train_y = clusters(1, count=400, classes=8, spread=0.01)
    test_x, test_y = clusters(2, count=400, classes=8, spread=0.01)
    assert evaluate.knn_accuracy(train_x, train_y, test_x, test_y) == 1.0
    assert linear_probe.linear_accuracy(train_x, train_y, test_x, test_y) == 1.0
    assert evaluate.retrieval(test_x, test_y) == (1.0, 1.0)

    noise = np.random.default_rng(5).normal(size=(800, 16))
    labels = np.random.default_rng(6).integers(8, size=800)
    for metric in (evaluate.knn_accuracy, linear_probe.linear_accuracy):
        # 400 draws of probability 1/8 stray by more than 0.07 once in 30,000 times.
        assert metric(noise[:400], labels[:400], noise[400:], labels[400:]) == pytest.approx(1 / 8, abs=0.07)


def test_the_probe_chooses_its_penalty_without_the_test_labels() -> None:
    train_x, train_y = clusters(1, count=200, classes=4, spread=3.0)
    test_x, test_y = clusters(2, count=100, classes=4, spread=3.0)
    accuracy, penalty = linear_probe.linear_probe(train_x, train_y, test_x, test_y)
    assert penalty in linear_probe.PENALTIES
    wrong, same = linear_probe.linear_probe(train_x, train_y, test_x, (test_y + 1) % 4)
    assert same == penalty
    assert wrong < accuracy
    assert linear_probe.linear_probe(train_x, train_y, test_x, test_y) == (accuracy, penalty)


def test_the_probe_takes_the_strongest_penalty_that_does_best_on_its_split() -> None:
    train_x, train_y = clusters(1, count=200, classes=4, spread=2.0)
    fitted, held_out = linear_probe.stratified_split(train_y, linear_probe.HELD_OUT, 0)
    tried = []
    for penalty in linear_probe.PENALTIES:
        scaler = StandardScaler().fit(train_x[fitted])
        model = LogisticRegression(C=penalty, max_iter=5000).fit(scaler.transform(train_x[fitted]), train_y[fitted])
        tried.append(model.score(scaler.transform(train_x[held_out]), train_y[held_out]))
    chosen = linear_probe.linear_probe(train_x, train_y, train_x, train_y)[1]
    assert chosen == linear_probe.PENALTIES[tried.index(max(tried))]
    assert len(set(tried)) > 2


def test_a_feature_that_never_changes_does_no_harm() -> None:
    x, y = clusters(1, count=100, classes=3, spread=0.1)
    x[:, 3] = 0.25
    assert linear_probe.linear_accuracy(x, y, x, y) == 1.0


def test_a_feature_that_hardly_varied_on_the_training_images_does_not_decide_alone() -> None:
    x, y = clusters(1, count=100, classes=3, spread=0.1)
    quiet, loud = x.copy(), x.copy()
    quiet[:, 3], loud[:, 3] = 0.0, 0.1
    quiet[y == 0, 3] = 1e-6
    probe = linear_probe.LinearProbe.fit(quiet, y, 1.0)
    assert probe.accuracy(loud, y) == 1.0
    assert np.abs(probe.logits(loud) - probe.logits(quiet)).max() < 0.1
    weight, bias = probe.layer()
    np.testing.assert_allclose(loud @ weight.T + bias, probe.logits(loud), atol=1e-4)


@settings(deadline=None, max_examples=50)
@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=60), seed=st.integers(0, 3))
def test_a_split_is_stratified_and_repeatable(labels: list[int], seed: int) -> None:
    y = np.array(labels)
    first, second = linear_probe.stratified_split(y, 0.2, seed)
    assert sorted([*first, *second]) == list(range(len(y)))
    for label in set(labels):
        count, held = labels.count(label), int((y[second] == label).sum())
        assert held == (0 if count == 1 else max(1, round(0.2 * count)))
        assert held < count
    again = linear_probe.stratified_split(y, 0.2, seed)
    assert [part.tolist() for part in again] == [first.tolist(), second.tolist()]


def test_classes_of_one_image_are_probed_all_the_same() -> None:
    x = np.eye(4)
    assert linear_probe.linear_probe(x, np.arange(4), x, np.arange(4)) == (1.0, linear_probe.PENALTIES[-1])


def test_metrics_refuse_what_has_no_answer() -> None:
    x, y = np.eye(4), np.zeros(4, dtype=np.int64)
    for bad in ({"k": 0}, {"temperature": 0.0}, {"temperature": float("nan")}):
        with pytest.raises(InvalidArgumentError, match="kNN needs"):
            evaluate.knn_predict(x, y, x, **bad)
    with pytest.raises(InvalidArgumentError, match="at least one neighbour"):
        evaluate.knn_predict(x[:0], y[:0], x)
    with pytest.raises(InvalidArgumentError, match="two classes"):
        linear_probe.linear_probe(x, y, x, y)


def test_nearest_breaks_ties_by_column_also_across_the_border() -> None:
    similarities = torch.tensor([[0.5, 1.0, 0.5, 1.0, 0.5], [0.0, 0.1, 0.2, 0.3, 0.4]])
    values, columns = evaluate.nearest(similarities, 3)
    assert columns.tolist() == [[1, 3, 0], [4, 3, 2]]
    assert values.tolist() == [pytest.approx([1.0, 1.0, 0.5]), pytest.approx([0.4, 0.3, 0.2])]


def shades(
    seed: int,
    *,
    classes: Sequence[str] = ("dark", "light"),
    present: Sequence[str] | None = None,
    resize: Resize = "squash",
    count: int = 60,
) -> ImageSet:
    """Return images whose class can be seen: noise around one shade of gray for each name, at 8 pixels."""
    names = tuple(sorted(classes))
    random = np.random.default_rng(seed)
    shade = {"dark": 60, "light": 190}
    chosen = present or names
    labels = np.array([names.index(chosen[i % len(chosen)]) for i in range(count)], dtype=np.int64)
    noise = random.integers(-40, 40, size=(count, 8, 8, 3))
    middles = np.array([shade.get(name, 120) for name in names])[labels]
    pixels = np.clip(middles[:, None, None, None] + noise, 0, 255).astype(np.uint8)
    keys = tuple(f"{names[label]}/{row}" for row, label in enumerate(labels))
    return ImageSet(pixels, labels, names, keys, f"shades-{seed}", Preprocess(8, 8, resize))


def test_an_artifact_is_judged_by_what_it_answers(tmp_path: Path) -> None:
    model = tiny_artifact(tmp_path / "model.onnx")
    train, test = shades(1), shades(2, count=40)
    scores = evaluate.evaluate_artifact(model, train, test)
    x, queries = (Encoder.open(model).embed_pixels(images.pixels) for images in (train, test))
    assert scores.knn_accuracy == evaluate.knn_accuracy(x, train.labels, queries, test.labels) == 1.0
    assert scores.linear_accuracy == 1.0
    assert (scores.recall_at_1, scores.map_at_r) == evaluate.retrieval(queries, test.labels)
    assert (scores.train_count, scores.test_count, scores.class_count, scores.knn_k) == (60, 40, 2, 20)
    assert scores.embeddings_per_second > 0
    accuracies = {"knn_accuracy", "linear_accuracy", "knn_macro_accuracy", "linear_macro_accuracy"}
    assert set(scores.for_metadata()) == {*accuracies, "recall_at_1", "map_at_r"}
    assert scores.to_json()["linear_c"] == scores.linear_c


def test_classes_are_matched_by_name_not_by_number(tmp_path: Path) -> None:
    model = tiny_artifact(tmp_path / "model.onnx")
    more = shades(1, classes=("bright", "dark", "light"), present=("dark", "light"))
    assert more.class_names != shades(2).class_names
    assert evaluate.evaluate_artifact(model, more, shades(2)).knn_accuracy == 1.0
    assert evaluate.align_labels(more, shades(2)).tolist() == [1, 2] * 30


def test_an_evaluation_refuses_images_that_do_not_belong(tmp_path: Path) -> None:
    model = tiny_artifact(tmp_path / "model.onnx")
    stranger = shades(2, classes=("dark", "grey", "light"))
    with pytest.raises(InvalidArgumentError, match=r"1 of 3 classes .*\(grey\)"):
        evaluate.evaluate_artifact(model, shades(1), stranger)
    unlabelled = shades(3)
    unlabelled = ImageSet(
        unlabelled.pixels, np.full(60, -1), (), unlabelled.keys, unlabelled.name, unlabelled.preprocess
    )
    with pytest.raises(InvalidArgumentError, match="no class folders"):
        evaluate.evaluate_artifact(model, shades(1), unlabelled)
    with pytest.raises(FailedPreconditionError, match="prepared by other rules"):
        evaluate.evaluate_artifact(model, shades(1), shades(2, resize="crop"))
    with pytest.raises(NotFoundError):
        evaluate.evaluate_artifact(tmp_path / "none.onnx", shades(1), shades(2))
