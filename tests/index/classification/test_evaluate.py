"""A collection judges itself by leaving each item out: as its own classification would, with honest confidence."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagekin.cli import main as cli
from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.index.classification.evaluate import calibration_error
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.types import ClassifyMethod, ClassifyOptions, EvaluateOptions, VectorItem
from tests.index.reference import unit

DIM = 10
METHODS = list(ClassifyMethod)


def made(count: int, noise: float = 0.45) -> list[VectorItem]:
    """Return items of four overlapping classes, every fifth one a copy of the file before it, and some unlabelled."""
    random = np.random.default_rng(3)
    centres = unit(random.standard_normal((4, DIM)).astype(np.float32))
    items: list[VectorItem] = []
    for n in range(count):
        vector = centres[n % 4] + noise * random.standard_normal(DIM).astype(np.float32)
        file = n - 4 if n % 5 == 4 and n > 4 else n
        if file != n:
            vector = items[file].vector
        label = None if n % 11 == 0 else "abcd"[n % 4]
        items.append(VectorItem(f"k{n}", vector, label, None, (file + 1).to_bytes(32, "big")))
    return items


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[LocalCollection]:
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("judged", space="ik1-a", dim=DIM)
        collection.upsert(made(400))
        yield collection


@pytest.mark.parametrize("method", METHODS)
def test_it_leaves_out_what_a_classification_would(collection: LocalCollection, method: ClassifyMethod) -> None:
    found = collection.evaluate(EvaluateOptions(method, k=7))
    items = [item for item in made(400) if item.label]
    options = ClassifyOptions(
        method,
        k=7,
        temperature=found.temperature,
        exclude_hashes=[item.content_hash for item in items],
        exclude_keys=[frozenset([item.key]) for item in items],
    )
    predictions = collection.classify(np.stack([item.vector for item in items]), options)
    right = [prediction.label == item.label for prediction, item in zip(predictions, items, strict=True)]
    assert (found.items, found.classes) == (len(items), 4)
    # The halves' own temperatures may tip a vote or two.
    assert found.accuracy == pytest.approx(np.mean(right), abs=0.01)
    kept = [prediction.nearest_similarity >= found.min_similarity - 1e-6 for prediction in predictions]
    assert np.mean(kept) == pytest.approx(0.95, abs=0.01)
    assert sum(count for _, _, count in found.confusion) == len(items)
    assert sum(count for a, b, count in found.confusion if a == b) == round(found.accuracy * len(items))


@pytest.mark.parametrize("method", METHODS)
def test_the_fitted_temperature_is_more_honest_than_extreme_ones(
    collection: LocalCollection, method: ClassifyMethod
) -> None:
    found = collection.evaluate(EvaluateOptions(method))
    items = [item for item in made(400) if item.label]

    def error(temperature: float) -> float:
        options = ClassifyOptions(method, temperature=temperature, exclude_hashes=[item.content_hash for item in items])
        predictions = collection.classify(np.stack([item.vector for item in items]), options)
        right = np.array([one.label == item.label for one, item in zip(predictions, items, strict=True)])
        return calibration_error(np.array([one.confidence for one in predictions]), right)

    assert found.ece < 0.12
    assert error(found.temperature) < min(error(0.005), error(2.0))


def test_the_calibration_error_is_that_of_the_paper() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.5, 0.5])
    right = np.array([True, True, True, False, True, False])
    assert calibration_error(confidence, right) == pytest.approx(4 / 6 * 0.2)
    assert calibration_error(np.ones(3), np.ones(3, np.bool_)) == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_calibration_is_kept(tmp_path: Path, method: ClassifyMethod) -> None:
    with Catalog(tmp_path) as catalog:
        collection = catalog.create("judged", space="ik1-a", dim=DIM)
        with pytest.raises(FailedPreconditionError, match="two classes"):
            collection.calibrate(EvaluateOptions(method))
        collection.upsert(made(100))
        assert collection.calibration(method) is None
        found = collection.calibrate(EvaluateOptions(method, true_positive_rate=0.9))
    with Catalog(tmp_path, read_only=True) as catalog:
        kept = catalog.open("judged").calibration(method)
        assert kept is not None
        assert (kept.temperature, kept.min_similarity) == (found.temperature, found.min_similarity)
        assert (kept.true_positive_rate, kept.sequence) == (0.9, 100)
        assert sum(catalog.open("judged").calibration(one) is not None for one in METHODS) == 1


def test_a_sample_is_enough(collection: LocalCollection) -> None:
    assert collection.evaluate(EvaluateOptions(sample=50)).items == 50
    for name, wrong in (("k", 0), ("k", 10_001), ("sample", 1), ("true_positive_rate", 1.5)):
        changes: dict[str, Any] = {name: wrong}
        with pytest.raises(InvalidArgumentError, match=name.replace("_", "-")):
            EvaluateOptions(**changes)


def test_the_command_states_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Catalog(tmp_path) as catalog:
        catalog.create("judged", space="ik1-a", dim=DIM).upsert(made(120))
    place = ["collection", "evaluate", "judged", "--data-dir", str(tmp_path)]
    assert cli.run([*place, "--save", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["saved"] is True
    assert 0.5 < answer["accuracy"] <= 1
    assert {"ece", "temperature", "min_similarity", "confusion", "items"} <= answer.keys()
    assert cli.run([*place, "--method", "prototype"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert cli.run([*place, "--method", "forest"]) == 2
    assert "'forest' is not one of 'knn', 'prototype'" in capsys.readouterr().err
