"""What is exported is what was trained: same numbers, same answers, one file, or none at all."""

import dataclasses
import json
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from torch import Tensor, nn

from imagekin.encoder.artifact import read_metadata
from imagekin.encoder.decoding.decode import load_pixels
from imagekin.encoder.metadata import Metadata, Preprocess
from imagekin.encoder.runtime import session
from imagekin.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from imagekin.sources.open import open_source
from imagekin.training.data.images import load_images
from imagekin.training.export import export, onnx_graph, parity
from imagekin.training.loop.checkpoint import Checkpoint, Position, save
from imagekin.training.models.encoders import Backbone, Normalisation, build_encoder
from imagekin.training.settings import CHECKPOINT_FILE, TrainSettings
from tests.data import shared_data

NORMALISATION = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
SIZE = 16


def photos(count: int, size: int = SIZE) -> NDArray[np.uint8]:
    """Return real photos, `count` of them, uint8 [N, size, size, 3]."""
    records = islice(open_source(shared_data("grocery-test.tar")), count)
    files = [record.data for record in records if isinstance(record.data, bytes)]
    return np.stack([load_pixels(data, Preprocess(size, size)) for data in files])


def noise(count: int, size: int = SIZE) -> NDArray[np.uint8]:
    """Return blurred noise, uint8 [N, size, size, 3]: nothing that an encoder would call the same."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, size=(count, size // 4, size // 4, 3))
    return np.asarray(coarse.repeat(4, axis=1).repeat(4, axis=2), dtype=np.uint8)


def trained(name: str = "tiny", size: int = SIZE) -> Backbone:
    """Return an encoder whose BatchNorm has seen data, so that its statistics are not those it started with."""
    torch.manual_seed(0)
    encoder = build_encoder(name, size)
    with torch.no_grad():
        for _ in range(3):
            encoder.train()(torch.randn(8, 3, size, size) * 2 + 1)
    return encoder


def metadata_for(encoder: Backbone, size: int = SIZE, classes: tuple[str, ...] = ()) -> Metadata:
    """Return metadata that fit the encoder."""
    space = export.space_of(encoder, NORMALISATION)
    return Metadata(space, encoder.feature_dim, Preprocess(size, size), class_names=classes)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backbone, Path]:
    """Return an encoder and the artifact that it was exported to."""
    encoder, path = trained(), tmp_path_factory.mktemp("export") / "model.onnx"
    export.export(encoder, NORMALISATION, metadata_for(encoder), noise(40), None, path)
    return encoder, path


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_one_graph_serves_every_batch_size(exported: tuple[Backbone, Path], count: int) -> None:
    encoder, path = exported
    pixels = noise(64)
    served = session.Encoder.open(path, device="cpu").embed_pixels(pixels[:count])
    scaled = (pixels / 255.0 - NORMALISATION.mean) / NORMALISATION.std
    with torch.no_grad():
        features = encoder.eval()(torch.tensor(scaled, dtype=torch.float32).permute(0, 3, 1, 2)).numpy()
    wanted = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert served.shape == (count, encoder.feature_dim)
    assert np.abs(served - wanted[:count]).max() <= 1e-5
    assert np.allclose(np.linalg.norm(served, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("name", "size"), [("tiny", 64), ("resnet50", 32), ("resnet18", 96)])
def test_every_encoder_passes_the_gate_on_real_photos(tmp_path: Path, name: str, size: int) -> None:
    encoder = trained(name, size)
    path = tmp_path / "model.onnx"
    report = export.export(encoder, NORMALISATION, metadata_for(encoder, size), photos(24, size), None, path)
    assert report.max_abs_diff <= 1e-5
    assert report.knn_agreement == 1.0
    assert report.sample_count == 24
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_the_file_holds_nothing_of_the_machine_and_equal_weights_give_equal_files(
    exported: tuple[Backbone, Path], tmp_path: Path
) -> None:
    encoder, path = exported
    again = tmp_path / "again.onnx"
    export.export(trained(), NORMALISATION, metadata_for(encoder), noise(2), None, again)
    assert path.read_bytes() == again.read_bytes()
    model = onnx.load(path)
    assert not [tensor for tensor in model.graph.initializer if tensor.external_data]
    del model.graph.initializer[:]
    text = model.SerializeToString()
    assert str(Path(export.__file__).parent).encode() not in text
    assert b".py" not in text
    assert b"Traceback" not in text


def test_exporting_says_nothing_and_leaves_the_encoder_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    encoder = trained().train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    export.export(encoder, NORMALISATION, metadata_for(encoder), noise(4), None, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert encoder.training
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_the_space_is_that_of_the_weights() -> None:
    encoder = trained()
    space = export.space_of(encoder, NORMALISATION)
    assert export.space_of(trained(), NORMALISATION) == space
    counters = [value for name, value in encoder.state_dict().items() if name.endswith("num_batches_tracked")]
    for counter in counters:
        counter.add_(1)  # no embedding depends on it
    assert counters
    assert export.space_of(encoder, NORMALISATION) == space
    other = dataclasses.replace(NORMALISATION, mean=(0.4, 0.5, 0.61))
    assert export.space_of(encoder, other) != space
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3
    assert export.space_of(encoder, NORMALISATION) != space


def test_a_linear_head_becomes_logits(tmp_path: Path) -> None:
    encoder, path = trained(), tmp_path / "model.onnx"
    torch.manual_seed(1)
    head = nn.Linear(encoder.feature_dim, 3)
    metadata = metadata_for(encoder, classes=("apple", "kiwi", "pear"))
    export.export(encoder, NORMALISATION, metadata, noise(8), None, path, head=head)
    outputs = session.Encoder.open(path, device="cpu").run(noise(8))
    assert outputs.logits is not None
    with torch.no_grad():
        wanted = head(torch.tensor(outputs.embeddings)).numpy()
    assert np.abs(outputs.logits - wanted).max() <= 1e-5


def a_weight_moved(model: onnx.ModelProto) -> None:
    """Change one convolution of the graph."""
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(largest).copy()
    values[0] *= 1.5
    largest.CopyFrom(numpy_helper.from_array(values, largest.name))


def a_step_left_out(model: onnx.ModelProto) -> None:
    """Take the ReLU at the end of the first block away."""
    last = [node for node in model.graph.node if node.op_type == "Relu"][1]
    last.op_type = "Identity"


@pytest.mark.parametrize("sabotage", [a_weight_moved, a_step_left_out])
def test_a_graph_that_is_not_the_encoder_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sabotage: Callable[[onnx.ModelProto], None]
) -> None:
    def convert(module: onnx_graph.ServedEncoder, pixels: NDArray[np.uint8]) -> onnx.ModelProto:
        model = onnx_graph.to_onnx(module, pixels)
        sabotage(model)
        return model

    encoder, path = trained(), tmp_path / "model.onnx"
    path.write_bytes(b"the model of yesterday")
    monkeypatch.setattr(export, "to_onnx", convert)
    with pytest.raises(FailedPreconditionError, match="not the trained encoder: embeddings differ by"):
        export.export(encoder, NORMALISATION, metadata_for(encoder), noise(20), None, path)
    assert path.read_bytes() == b"the model of yesterday"
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_a_wrong_head_is_refused() -> None:
    head = nn.Linear(4, 2)
    embeddings = np.eye(4, dtype=np.float32)
    with torch.no_grad():
        logits = head(torch.tensor(embeddings)).numpy()
    parity.check_logits(head, embeddings, logits)
    with pytest.raises(FailedPreconditionError, match="logits differ"):
        parity.check_logits(head, embeddings, logits + 1e-3)


def test_an_encoder_that_cannot_be_converted_is_refused_in_one_line(tmp_path: Path) -> None:
    class Undecided(Backbone):
        feature_dim = 3

        def forward(self, images: Tensor) -> Tensor:
            means = images.mean((2, 3))
            return means if bool(means.sum() > 0) else -means

    encoder = Undecided()
    with pytest.raises(FailedPreconditionError, match="cannot be converted to ONNX") as caught:
        export.export(encoder, NORMALISATION, metadata_for(encoder), noise(2), None, tmp_path / "model.onnx")
    assert len(str(caught.value).splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_metadata_of_another_encoder_and_too_few_images_are_refused(tmp_path: Path) -> None:
    encoder = trained()
    wrong = dataclasses.replace(metadata_for(encoder), space="ik1-0")
    with pytest.raises(InvalidArgumentError, match="another embedding space"):
        export.export(encoder, NORMALISATION, wrong, noise(2), None, tmp_path / "model.onnx")
    with pytest.raises(InvalidArgumentError, match="at least two"):
        export.export(encoder, NORMALISATION, metadata_for(encoder), noise(1), None, tmp_path / "model.onnx")


def unit(x: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return rows of unit length."""
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype=np.float32)


def test_agreement_counts_answers_one_by_one() -> None:
    # Four pairs on four axes; in the candidate one image has moved to another pair.
    reference = unit(np.repeat(np.eye(4), 2, axis=0) + 0.01 * np.random.default_rng(0).normal(size=(8, 4)))
    moved = reference.copy()
    moved[0] = reference[2]
    labels = np.arange(8) // 2
    assert parity.knn_agreement(reference, reference, labels) == 1.0
    # Image 0 answers with its new pair, its old partner has lost its neighbour, and both new ones take it for theirs.
    assert parity.knn_agreement(reference, moved, labels) == 4 / 8
    # When all images are of one class, every neighbour is the same answer.
    assert parity.knn_agreement(reference, moved, np.zeros(8, dtype=np.int64)) == 1.0


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), count=st.integers(2, 40))
def test_rounding_never_costs_agreement(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    points = random.integers(-2, 3, size=(count, 3)) + 0.1  # many exact duplicates
    reference = unit(points)
    candidate = unit(points + 1e-7 * random.normal(size=points.shape))
    assert parity.knn_agreement(reference, candidate, np.arange(count)) == 1.0


def test_the_gate_refuses_nan_and_wrong_answers() -> None:
    reference = unit(np.random.default_rng(0).normal(size=(200, 8)))
    parity.check_parity(reference, reference, np.arange(200))
    with pytest.raises(FailedPreconditionError, match="differ"):
        parity.check_parity(reference, np.full_like(reference, np.nan), np.arange(200))
    # A difference within the limit in each of 400 components that together swaps the first neighbour for the second.
    query, other, another = np.full(400, 0.05), np.tile([0.05, -0.05], 200), np.repeat([0.05, -0.05], 200)
    near = unit(np.stack([query, 0.501 * query + 0.865 * other, 0.5 * query + 0.866 * another]))
    swapped = near + np.float32(9e-5) * np.array([[0], [0], [1]], dtype=np.float32)
    with pytest.raises(FailedPreconditionError, match=r"66\.67% of its nearest-neighbour answers agree"):
        parity.check_parity(near, swapped, np.arange(3))


def finished_run(folder: Path, data: str = "digits", **options: object) -> Path:
    """Write the folder of a run that was stopped before its first step."""
    torch.manual_seed(0)
    settings_ = TrainSettings(data=data, out=folder, image_size=SIZE, **options)  # type: ignore[arg-type]
    encoder = build_encoder("tiny", SIZE)
    folder.mkdir()
    checkpoint = Checkpoint(settings_, NORMALISATION, (), "digits", Position(), encoder.state_dict(), {}, {}, {})
    save(checkpoint, folder / CHECKPOINT_FILE)
    return folder


def test_a_run_becomes_an_artifact_with_its_scores(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    report = export.export_run(run)
    assert sorted(os.listdir(run)) == ["checkpoint.pt", "model.onnx", "report.json"]
    assert report.scores is not None
    # Random weights, and still far better than the 10 % of chance: digits differ by where their ink is.
    assert 0.5 < report.scores.knn_accuracy <= 1
    assert (report.scores.train_count, report.scores.test_count) == (1437, 360)

    metadata = read_metadata(run / "model.onnx")
    assert (metadata.space, metadata.dim, metadata.dataset) == (report.space, report.dim, "digits")
    assert metadata.scores == report.scores.for_metadata()
    assert metadata.training["temperature"] == 0.1
    assert metadata.training["steps_done"] == 0
    assert str(tmp_path) not in metadata.to_json()

    written = json.loads((run / "report.json").read_text())
    assert written == report.to_json()
    assert written["onnx_max_abs_diff"] <= 1e-5
    assert written["onnx_knn_agreement"] >= 0.999
    assert {"model", "space", "knn_accuracy", "linear_accuracy", "embeddings_per_second"} <= set(written)


def test_a_run_without_labels_or_test_images_has_no_scores(tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    folder.mkdir()
    for number, pixels in enumerate(noise(12)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    run = finished_run(tmp_path / "run", data=str(folder))
    report = export.export_run(run)
    assert report.scores is None
    assert read_metadata(report.model).scores == {}
    assert "knn_accuracy" not in json.loads((run / "report.json").read_text())


def test_a_run_takes_images_from_where_they_are_now(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", data=str(tmp_path / "gone"))
    with pytest.raises(NotFoundError, match="gone"):
        export.export_run(run)
    assert export.export_run(run, data="digits").scores is not None


def test_images_at_hand_are_not_loaded_again(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", data=str(tmp_path / "gone"))
    train = load_images("digits", size=SIZE, split="train", limit=10)
    test = load_images("digits", size=SIZE, split="test", limit=10)
    report = export.export_run(run, train=train, test=test)
    assert report.scores is not None
    assert (report.scores.train_count, report.scores.test_count) == (100, 100)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        export.export_run(tmp_path)
