"""A twin of lower precision gives the original's answers, in its space, or is not written."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from imagekin.encoder import artifact
from imagekin.encoder.adoption.adopt import Adoption, AdoptSettings
from imagekin.encoder.artifact import load_graph, read_metadata
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.training.data.images import ImageSet, load_images
from imagekin.training.evaluation.options import export_command
from imagekin.training.export import parity, twins
from imagekin.training.export import precision_graphs as quantise
from imagekin.training.loop.trainer import pretrain
from imagekin.training.settings import TrainSettings
from tests.foreign import Pooled, Relu6, Tokens, export

SIZE = 16


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    """Some digits to convert by, others to check on."""
    return load_images("digits", size=SIZE, split="train", limit=20), load_images("digits", size=SIZE, split="test")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on digits."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = TrainSettings(
        data="digits",
        out=folder,
        image_size=SIZE,
        views="strokes",
        epochs=3,
        warmup_epochs=0.5,
        batch_size=64,
        threads=1,
    )
    pretrain(settings)
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Path:
    """The run's artifact."""
    return run / "model.onnx"


def fused(path: Path, folder: Path) -> list[str]:
    """Return the kinds of nodes that ONNX Runtime makes of a file on a CPU."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


def test_int8_runs_in_integer_kernels_and_answers_alike(
    model: Path, digits: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    out = tmp_path / "twin" / "int8.onnx"
    report = twins.reduce_artifact(model, out, "int8", *digits)
    assert os.listdir(out.parent) == ["int8.onnx"]
    assert report.knn_agreement >= 0.99
    assert report.file_bytes < 0.5 * report.parent_bytes
    parent, twin = read_metadata(model), read_metadata(out)
    assert (twin.space, twin.precision, twin.dim) == (parent.space, "int8", parent.dim)
    assert twin.scores == {"parent_knn_agreement": report.knn_agreement}
    kinds = fused(out, tmp_path)
    layers = len([node for node in load_graph(model).graph.node if node.op_type == "Conv"])
    assert kinds.count("QLinearConv") >= layers * 0.25
    assert kinds.count("Conv") + kinds.count("FusedConv") + kinds.count("QLinearConv") == layers
    assert kinds.count("QLinearConv") == layers - max(1, round(report.float_share * layers))
    pixels = digits[1].pixels
    cosines = (Encoder.open(model).embed_pixels(pixels) * Encoder.open(out).embed_pixels(pixels)).sum(1)
    assert cosines.min() > 0.99


def test_float16_halves_the_weights_and_says_that_a_cpu_is_slow(
    model: Path, digits: tuple[ImageSet, ImageSet], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = twins.reduce_artifact(model, tmp_path / "fp16.onnx", "float16", *digits)
    assert report.knn_agreement >= 0.99
    assert report.file_bytes < 0.6 * report.parent_bytes
    graph = onnx.load(tmp_path / "fp16.onnx").graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert "CPUs run slowly" not in caplog.text
    encoder = Encoder.open(tmp_path / "fp16.onnx")
    assert "CPUs run slowly" in caplog.text
    lengths = np.linalg.norm(encoder.embed_pixels(digits[1].pixels), axis=1)
    assert np.abs(lengths - 1).max() < 1e-3  # components rounded to float16


def test_a_transformers_layers_become_int8_and_its_attention_stays(tmp_path: Path) -> None:
    path = export(Tokens(), tmp_path / "tokens.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    Adoption(path, AdoptSettings((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), pool="cls")).write(pixels, tmp_path / "model.onnx")
    converted = quantise.to_int8(load_graph(tmp_path / "model.onnx"), pixels)
    made = {output: node.op_type for node in converted.graph.node for output in node.output}
    products = [node for node in converted.graph.node if node.op_type == "MatMul"]
    integer = [node for node in products if all(made.get(name) == "DequantizeLinear" for name in node.input)]
    assert 0 < len(integer) < len(products)


def test_what_relu6_cuts_off_takes_no_room_in_eight_bits(tmp_path: Path) -> None:
    path = export(Relu6(), tmp_path / "relu6.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    model = tmp_path / "model.onnx"
    Adoption(path, AdoptSettings((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))).write(pixels[:8], model)
    artifact.write(quantise.to_int8(load_graph(model), pixels[:32]), read_metadata(model), tmp_path / "int8.onnx")
    kinds = fused(tmp_path / "int8.onnx", tmp_path)
    assert kinds.count("QLinearConv") == 2
    assert kinds.count("QuantizeLinear") == 1, "nothing is converted between integer layers"
    both = [Encoder.open(file).embed_pixels(pixels[32:]) for file in (model, tmp_path / "int8.onnx")]
    assert (both[0] * both[1]).sum(1).min() > 0.999


@pytest.mark.parametrize(("side", "most"), [(64, 16), (224, 16), (518, 2), (1500, 1)])
def test_large_images_are_calibrated_few_at_a_time(side: int, most: int) -> None:
    reader = quantise._reader(np.zeros((20, side, side, 3), np.uint8))
    batches = [len(batch["pixels"]) for batch in iter(reader.get_next, None)]
    assert (max(batches), sum(batches)) == (most, 20)


def test_pooling_behind_the_first_layer_stays_in_float(tmp_path: Path) -> None:
    """In front of a conversion to int8 ONNX Runtime would pool bytes, which takes it twenty times as long."""
    path = export(Pooled(), tmp_path / "pooled.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)
    model = tmp_path / "model.onnx"
    Adoption(path, AdoptSettings((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))).write(pixels[:8], model)
    artifact.write(quantise.to_int8(load_graph(model), pixels), read_metadata(model), tmp_path / "int8.onnx")
    kinds = fused(tmp_path / "int8.onnx", tmp_path)
    assert kinds.count("QLinearConv") == 1
    assert kinds.index("MaxPool") < kinds.index("QuantizeLinear")
    both = [Encoder.open(file).embed_pixels(pixels) for file in (model, tmp_path / "int8.onnx")]
    assert (both[0] * both[1]).sum(1).min() > 0.999


def test_a_run_knows_its_images(run: Path) -> None:
    report = twins.reduce_run(run, "int8")
    assert report.model == run / "model-int8.onnx"
    assert report.sample_count == 360
    assert read_metadata(report.model).space == read_metadata(run / "model.onnx").space


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_a_twin_whose_answers_differ_is_not_written(
    model: Path,
    digits: tuple[ImageSet, ImageSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: twins.ReducedPrecision,
) -> None:
    def spoilt(graph: onnx.ModelProto, *_: object) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(graph)
        weight = max(copy.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        noise = np.random.default_rng(0).normal(size=tuple(weight.dims)).astype(np.float32)
        weight.CopyFrom(numpy_helper.from_array(noise, weight.name))
        return copy

    monkeypatch.setattr(twins, "to_int8", spoilt)
    monkeypatch.setattr(twins, "to_float16", spoilt)
    out = tmp_path / "model-x.onnx"
    out.write_bytes(b"the twin of yesterday")
    with pytest.raises(FailedPreconditionError, match="needed are 99%; nothing was written"):
        twins.reduce_artifact(model, out, precision, *digits)
    assert out.read_bytes() == b"the twin of yesterday"
    assert os.listdir(tmp_path) == ["model-x.onnx"]


def test_agreement_counts_queries_put_to_the_originals_collection() -> None:
    def unit(x: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)

    points = unit(np.random.default_rng(0).normal(size=(200, 8)))
    turned = unit(points @ np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0])
    labels = np.arange(200)
    # A twin that turns the whole space agrees with itself and is useless beside the original.
    assert parity.knn_agreement(points, turned, labels) == 1.0
    assert twins._agreement(points, turned, labels) < 0.2


def test_a_twin_of_a_twin_and_too_few_images_are_refused(
    model: Path, digits: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    train, test = digits
    with pytest.raises(InvalidArgumentError, match="at least 8 images"):
        twins.reduce_artifact(model, tmp_path / "x.onnx", "float16", train, test.take(np.arange(3)))
    twin = twins.reduce_artifact(model, tmp_path / "x.onnx", "float16", train, test).model
    with pytest.raises(InvalidArgumentError, match="float16 already"):
        twins.reduce_artifact(twin, tmp_path / "y.onnx", "int8", train, test)


def test_the_command_converts_an_artifact_and_says_how_well(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_command(model, fp16=True, images="digits", as_json=True)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["model"] == str(model.with_name("model-fp16.onnx"))
    assert figures["precision"] == "float16"
    assert figures["knn_agreement"] >= 0.99
    assert read_metadata(model.with_name("model-fp16.onnx")).space == read_metadata(model).space


@pytest.mark.parametrize(
    ("int8", "fp16", "reason"), [(True, True, "either"), (True, False, "--images"), (False, False, "--int8, --fp16")]
)
def test_wrong_use_is_said(model: Path, int8: bool, fp16: bool, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        export_command(model, int8=int8, fp16=fp16)
