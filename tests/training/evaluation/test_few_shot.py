"""Few-shot accuracy is what its definition says: right on what is separable, chance on what is not, never by a tie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from imagekin.errors import InvalidArgumentError
from imagekin.training.evaluation.few_shot import Method, few_shot_accuracy, parse_way_shot

Points = NDArray[np.float32]
Classes = NDArray[np.int64]


def clusters(classes: int, each: int, spread: float, seed: int = 0) -> tuple[Points, Classes]:
    """Return `each` noisy copies of random directions in 32 dimensions, and which one each is."""
    random = np.random.default_rng(seed)
    labels = np.arange(classes).repeat(each)
    points = random.normal(size=(classes, 32))[labels] + spread * random.normal(size=(len(labels), 32))
    return points.astype(np.float32), labels


@pytest.mark.parametrize("method", ["mean", "nearest"])
def test_separable_classes_score_one_and_noise_scores_chance(method: Method) -> None:
    points, labels = clusters(30, 20, spread=0.01)
    perfect = few_shot_accuracy(points, labels, way=20, shot=1, queries=5, episodes=50, seed=0, method=method)
    assert (perfect.accuracy, perfect.standard_error) == (1.0, 0.0)
    noise = np.random.default_rng(1).normal(size=(600, 32)).astype(np.float32)
    chance = few_shot_accuracy(noise, labels, way=5, shot=2, queries=5, episodes=2000, seed=0, method=method)
    assert abs(chance.accuracy - 1 / 5) < 5 * chance.standard_error + 0.01
    assert 0 < chance.standard_error < 0.01


def test_one_episode_over_everything_is_the_definition_done_slowly() -> None:
    points, labels = clusters(2, 5, spread=1.5, seed=3)
    # With all images of both classes in it, only the choice of the examples is open: average over many.
    ours = few_shot_accuracy(points, labels, way=2, shot=2, queries=3, episodes=4000, seed=0)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    random = np.random.default_rng(9)
    slow = []
    for _ in range(4000):
        orders = [random.permutation(5) + 5 * number for number in range(2)]
        means = [unit[order[:2]].mean(0) for order in orders]
        cosines = [[q @ mean / np.linalg.norm(mean) for mean in means] for order in orders for q in unit[order[2:]]]
        slow.append(np.mean(np.argmax(cosines, 1) == np.array([0, 0, 0, 1, 1, 1])))
    assert ours.accuracy == pytest.approx(float(np.mean(slow)), abs=0.02)


def test_a_collapsed_encoder_scores_nothing() -> None:
    labels = np.arange(10).repeat(8)
    assert few_shot_accuracy(np.ones((80, 4)), labels, way=5, shot=1, queries=2, episodes=20).accuracy == 0.0


def test_groups_keep_an_episode_within_one_of_them() -> None:
    # Each group lies in a plane of its own, within which classes coincide: apart by group is easy, within is chance.
    random = np.random.default_rng(0)
    groups = np.arange(4).repeat(60)
    labels = np.arange(24).repeat(10)
    points = (10 * np.eye(4)[groups] + random.normal(size=(240, 4))).astype(np.float32)
    within = few_shot_accuracy(points, labels, way=5, shot=1, queries=4, episodes=300, groups=groups)
    across = few_shot_accuracy(points, labels, way=5, shot=1, queries=4, episodes=300)
    assert within.accuracy < 0.3 < across.accuracy


def test_only_classes_with_enough_images_are_drawn() -> None:
    points, labels = clusters(4, 10, spread=0.01)
    points, labels = np.concatenate((points, points[:1] + 0.5)), np.append(labels, 99)
    assert few_shot_accuracy(points, labels, way=4, shot=5, queries=5, episodes=20).accuracy == 1.0
    with pytest.raises(InvalidArgumentError, match=r"5-way 5-shot needs 5 classes with at least 10 images .* are 4"):
        few_shot_accuracy(points, labels, way=5, shot=5, queries=5, episodes=20)
    with pytest.raises(InvalidArgumentError, match="of one group"):
        few_shot_accuracy(points, labels, way=2, shot=1, queries=1, episodes=1, groups=np.arange(41))


@settings(deadline=None, max_examples=20)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_only_directions_count_and_a_seed_repeats(scale: float, seed: int) -> None:
    points, labels = clusters(6, 6, spread=1.0)
    lengths = np.random.default_rng(seed).uniform(0.5, 2.0, size=(36, 1))
    plain = few_shot_accuracy(points, labels, way=4, shot=2, queries=3, episodes=20, seed=seed)
    scaled = few_shot_accuracy(points * lengths * scale, labels, way=4, shot=2, queries=3, episodes=20, seed=seed)
    assert plain.accuracy == pytest.approx(scaled.accuracy, abs=0.02)
    assert plain == few_shot_accuracy(points, labels, way=4, shot=2, queries=3, episodes=20, seed=seed)


@pytest.mark.parametrize("text", ["20", "20x", "1x1", "5x0", "x", "20x1x1", "-5x1", "٥x١", "5 x 1", ""])
def test_what_is_no_task_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="20x1"):
        parse_way_shot(text)
    assert parse_way_shot("20x1") == (20, 1)
