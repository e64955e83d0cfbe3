"""Any artifact can be given a linear head, which leaves its embeddings alone and says when it does not know."""

import json
from pathlib import Path

import numpy as np
import pytest

from imagekin.encoder import artifact
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import InvalidArgumentError
from imagekin.training.data.images import ImageSet, load_images
from imagekin.training.evaluation.options import export_command
from imagekin.training.export.artifact_head import add_head, head_path
from imagekin.training.export.twins import reduce_artifact
from tests.artifacts import tiny_artifact


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_artifact(tmp_path / "model.onnx", dim=64)


@pytest.fixture
def digits(model: Path) -> tuple[ImageSet, ImageSet]:
    preprocess = artifact.read_metadata(model).preprocess
    return load_images("digits", split="train", preprocess=preprocess), load_images(
        "digits", split="test", preprocess=preprocess
    )


def test_the_head_classifies_and_the_embeddings_stay(model: Path, digits: tuple[ImageSet, ImageSet]) -> None:
    train, test = digits
    report = add_head(model, train, head_path(model))
    plain, headed = Encoder.open(model), Encoder.open(report.model)
    outputs = headed.run(test.pixels)
    assert headed.metadata.space == plain.metadata.space
    assert np.allclose(outputs.embeddings, plain.embed_pixels(test.pixels), atol=1e-6)
    assert outputs.logits is not None
    right = outputs.logits.argmax(1) == test.labels
    assert right.mean() > 0.5
    assert report.head_accuracy == pytest.approx(right.mean(), abs=0.15)
    shares = np.exp(outputs.logits - outputs.logits.max(1, keepdims=True))
    confidence = (shares / shares.sum(1, keepdims=True)).max(1)
    # The rate was measured on other images of the same kind, so it holds here up to chance.
    assert report.rejected == pytest.approx(0.05, abs=0.02)
    assert np.mean(confidence < report.min_confidence) == pytest.approx(0.05, abs=0.05)
    assert headed.metadata.scores["head_min_confidence"] == report.min_confidence


def test_unknown_classes_are_below_the_bound_more_often_than_known_ones(
    model: Path, digits: tuple[ImageSet, ImageSet]
) -> None:
    train, test = digits
    known = train.take(np.flatnonzero(train.labels < 7))
    report = add_head(model, known, head_path(model))
    logits = Encoder.open(report.model).run(test.pixels).logits
    assert logits is not None
    assert report.min_confidence is not None
    assert logits.shape[1] == report.class_count == 7
    shares = np.exp(logits - logits.max(1, keepdims=True))
    below = (shares / shares.sum(1, keepdims=True)).max(1) < report.min_confidence
    assert below[test.labels >= 7].mean() > 2 * below[test.labels < 7].mean()


def test_a_head_is_replaced_and_a_twin_keeps_it(model: Path, digits: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    train, test = digits
    first = add_head(model, train, tmp_path / "one.onnx").model
    few = train.take(np.flatnonzero(train.labels < 3))
    again = add_head(first, few, tmp_path / "two.onnx").model
    assert artifact.read_metadata(again).class_names == ("0", "1", "2")
    twin = reduce_artifact(again, tmp_path / "half.onnx", "float16", train, test).model
    assert artifact.read_metadata(twin).class_names == ("0", "1", "2")


def test_one_image_of_each_class_gives_a_head_without_figures(model: Path, digits: tuple[ImageSet, ImageSet]) -> None:
    train, _ = digits
    _, first = np.unique(train.labels, return_index=True)
    report = add_head(model, train.take(first), head_path(model))
    assert (report.head_accuracy, report.min_confidence, report.rejected) == (None, None, None)


def test_the_command_writes_it_beside_the_artifact(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_command(model, head="linear", images="digits", as_json=True)
    figures = json.loads(capsys.readouterr().out)
    assert figures["model"] == str(model.with_name("model-linear.onnx"))
    with pytest.raises(InvalidArgumentError, match="--images SOURCE"):
        export_command(model, head="linear")


def test_images_of_one_class_are_refused(model: Path, digits: tuple[ImageSet, ImageSet]) -> None:
    train, _ = digits
    with pytest.raises(InvalidArgumentError, match="at least two classes"):
        add_head(model, train.take(np.flatnonzero(train.labels == 1)), head_path(model))
    assert not head_path(model).exists()
