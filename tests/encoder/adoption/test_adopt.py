"""Encoders exported elsewhere become artifacts that do what they did; what cannot be adopted is refused in one line."""

import contextlib
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from imagekin.encoder.adoption import adopt
from imagekin.encoder.adoption.adopt import PRESETS, Adoption, AdoptSettings
from imagekin.encoder.adoption.wrap_graph import wrap
from imagekin.encoder.artifact import read_metadata
from imagekin.encoder.decoding.decode import load_pixels
from imagekin.encoder.metadata import Preprocess
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import FailedPreconditionError, ImagekinError, InvalidArgumentError, NotFoundError
from imagekin.sources.open import open_source
from tests.data import shared_data
from tests.foreign import ConvNet, Tokens, export

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SETTINGS = AdoptSettings(MEAN, STD)


def noise(count: int = 5, height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def adopted(path: Path, settings: AdoptSettings = SETTINGS, pixels: NDArray[np.uint8] | None = None) -> Encoder:
    """Adopt a model and open the artifact."""
    out = path.with_name("adopted.onnx")
    adoption = Adoption(path, settings)
    side = adoption.preprocess
    adoption.write(noise(5, side.height, side.width) if pixels is None else pixels, out)
    return Encoder.open(out, device="cpu")


def wanted(
    module: nn.Module, pixels: NDArray[np.uint8], pool: Callable[[torch.Tensor], torch.Tensor]
) -> NDArray[np.float32]:
    """Return what the module makes of pixels in torch, of unit length."""
    scaled = torch.tensor((pixels / 255.0 - MEAN) / STD, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        return np.asarray(nn.functional.normalize(pool(module(scaled)), dim=1).numpy())


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A convolutional network and its export."""
    module = ConvNet()
    return module, export(module, tmp_path_factory.mktemp("conv") / "conv.onnx")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A vision transformer and its export."""
    module = Tokens()
    return module, export(module, tmp_path_factory.mktemp("tokens") / "tokens.onnx")


def test_a_convolutional_encoder_does_as_an_artifact_what_it_did_in_torch(conv: tuple[nn.Module, Path]) -> None:
    module, path = conv
    encoder = adopted(path)
    pixels = noise(7)
    assert np.abs(encoder.embed_pixels(pixels) - wanted(module, pixels, lambda x: x)).max() <= 1e-5
    metadata = encoder.metadata
    assert (metadata.dim, metadata.preprocess.height, metadata.precision) == (24, 32, "float32")
    assert sorted(os.listdir(path.parent)) == ["adopted.onnx", "conv.onnx"]


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_tokens_are_pooled(tokens: tuple[nn.Module, Path], pool: str) -> None:
    module, path = tokens
    encoder = adopted(path, AdoptSettings(MEAN, STD, pool=pool))  # type: ignore[arg-type]
    right = wanted(module, noise(), lambda x: x[:, 0] if pool == "cls" else x.mean(1))
    assert np.abs(encoder.embed_pixels(noise()) - right).max() <= 1e-5


def test_a_vector_for_each_token_needs_a_choice(tokens: tuple[nn.Module, Path]) -> None:
    with pytest.raises(InvalidArgumentError, match="--pool cls or mean"):
        adopted(tokens[1])


def test_weights_beside_the_model_are_taken_in_and_make_the_same_space(tmp_path: Path) -> None:
    module = ConvNet()
    inside = adopted(export(module, tmp_path / "inside.onnx"))
    (tmp_path / "b").mkdir()
    outside = export(module, tmp_path / "b" / "outside.onnx", external=True)
    assert (tmp_path / "b" / "outside.onnx.data").is_file()
    encoder = adopted(outside)
    assert encoder.metadata.space == inside.metadata.space
    (tmp_path / "b" / "outside.onnx.data").unlink()
    assert np.array_equal(encoder.embed_pixels(noise()), inside.embed_pixels(noise()))
    with pytest.raises(NotFoundError, match="not beside it"):
        Adoption(outside, SETTINGS)


def test_another_normalisation_or_size_is_another_space(conv: tuple[nn.Module, Path]) -> None:
    path = conv[1]
    settings = [SETTINGS, AdoptSettings(STD, STD), AdoptSettings(MEAN, STD, interpolation="bicubic")]
    spaces = [adopted(path, each).metadata.space for each in settings]
    assert len(set(spaces)) == 3
    assert adopted(path).metadata.space == spaces[0]


def test_a_fixed_batch_of_one_becomes_dynamic_where_the_graph_allows_it(tmp_path: Path) -> None:
    module = ConvNet()
    encoder = adopted(export(module, tmp_path / "one.onnx", dynamic=False))
    assert np.abs(encoder.embed_pixels(noise(6)) - wanted(module, noise(6), lambda x: x)).max() <= 1e-5


def test_a_fixed_batch_that_is_baked_into_the_graph_is_refused(tmp_path: Path) -> None:
    path = export(Tokens(), tmp_path / "one.onnx", dynamic=False)
    with pytest.raises(InvalidArgumentError, match="batch size is fixed; export it with a dynamic one"):
        adopted(path, AdoptSettings(MEAN, STD, pool="cls"))
    assert os.listdir(tmp_path) == ["one.onnx"]


def hand_made(
    nodes: list[onnx.NodeProto],
    *,
    shape: Sequence[str | int] = ("N", 3, 4, 4),
    sides: Sequence[str | int] = ("N", "D"),
    opset: int = 13,
    kind: int = TensorProto.FLOAT,
    gives: int = TensorProto.FLOAT,
    weights: Sequence[TensorProto] = (),
) -> onnx.ModelProto:
    """Return a graph from `image` to `out` made of `nodes`."""
    image = helper.make_tensor_value_info("image", kind, shape)
    out = helper.make_tensor_value_info("out", gives, sides)
    graph = helper.make_graph(nodes, "hand-made", [image], [out], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


PLACES: Sequence[str | int] = ("N", 3, 4, 4)
FLATTEN = helper.make_node("Flatten", ["image"], ["out"])


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("opset", [9, 13, 17, 18, 21])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_old_and_new_opsets_and_both_layouts(tmp_path: Path, opset: int, layout: str) -> None:
    shape: Sequence[str | int] = ("N", 3, 4, 6) if layout == "nchw" else ("N", 4, 6, 3)
    encoder = adopted(saved(hand_made([FLATTEN], shape=shape, opset=opset), tmp_path / "flat.onnx"))
    pixels = noise(3, 4, 6)
    normalised = (pixels / 255.0 - MEAN) / STD
    rows = (normalised.transpose(0, 3, 1, 2) if layout == "nchw" else normalised).reshape(3, -1)
    assert np.abs(encoder.embed_pixels(pixels) - rows / np.linalg.norm(rows, axis=1, keepdims=True)).max() <= 1e-5


def test_an_encoder_in_float16_stays_one(tmp_path: Path) -> None:
    model = hand_made([FLATTEN], kind=TensorProto.FLOAT16, gives=TensorProto.FLOAT16)
    encoder = adopted(saved(model, tmp_path / "half.onnx"))
    assert encoder.metadata.precision == "float16"
    assert encoder.embed_pixels(noise(2, 4, 4)).dtype == np.float32


def test_a_size_is_needed_only_where_the_model_leaves_it_open(tmp_path: Path) -> None:
    pool = helper.make_node("GlobalAveragePool", ["image"], ["out"])
    path = saved(hand_made([pool], shape=("N", 3, "H", "W"), sides=["N", 3, 1, 1]), tmp_path / "open.onnx")
    assert Adoption(path, SETTINGS).preprocess.height == 224
    assert adopted(path, AdoptSettings(MEAN, STD, size=20)).metadata.preprocess.width == 20
    fixed = saved(hand_made([FLATTEN]), tmp_path / "fixed.onnx")
    with pytest.raises(InvalidArgumentError, match="fixed to 4×4"):
        Adoption(fixed, AdoptSettings(MEAN, STD, size=224))


def two_inputs() -> onnx.ModelProto:
    model = hand_made([helper.make_node("Add", ["image", "mask"], ["out"])], sides=PLACES)
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N", 3, 4, 4]))
    return model


def two_outputs() -> onnx.ModelProto:
    model = hand_made([FLATTEN, helper.make_node("Relu", ["image"], ["other"])])
    model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, PLACES))
    return model


def constant() -> onnx.ModelProto:
    zero = numpy_helper.from_array(np.zeros((1, 1), np.float32), "zero")
    one = numpy_helper.from_array(np.ones((1, 48), np.float32), "one")
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Mul", ["flat", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "one"], ["out"]),
    ]
    return hand_made(nodes, weights=[zero, one])


def mixes_the_batch() -> onnx.ModelProto:
    mean = helper.make_node("ReduceMean", ["image"], ["mean"], axes=[0], keepdims=1)
    return hand_made(
        [
            mean,
            helper.make_node("Mul", ["mean", "mean"], ["square"]),
            helper.make_node("Add", ["image", "square"], ["x"]),
            helper.make_node("Flatten", ["x"], ["out"]),
        ]
    )


def cast_out() -> onnx.ModelProto:
    cast = helper.make_node("Cast", ["image"], ["out"], to=TensorProto.INT64)
    return hand_made([cast], gives=TensorProto.INT64, sides=PLACES)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (two_inputs(), "2 inputs"),
        (two_outputs(), "several outputs"),
        (constant(), "same embedding for different images"),
        (mixes_the_batch(), "batch size is fixed"),
        (cast_out(), "not float32 or float16"),
        (hand_made([FLATTEN], kind=TensorProto.UINT8, gives=TensorProto.UINT8), "must be float32 or float16"),
        (hand_made([FLATTEN], shape=("N", 48)), "2 sides"),
        (hand_made([FLATTEN], shape=("N", 1, 4, 4)), "1 channels"),
        (hand_made([FLATTEN], shape=(8, 3, 4, 4)), "8 images at once"),
        (hand_made([helper.make_node("Relu", ["image"], ["out"])], sides=PLACES), "--pool mean"),
        (hand_made([helper.make_node("Flatten", ["image"], ["out"], axis=0)]), "batch size is fixed|cannot be adopted"),
        (hand_made([helper.make_node("Nothing", ["image"], ["out"])]), "not a valid ONNX model"),
        (hand_made([helper.make_node("Secret", ["image"], ["out"], domain="evil")]), "custom operator evil:Secret"),
        (hand_made([FLATTEN], opset=8), "opset 8"),
    ],
)
def test_what_is_no_image_encoder_is_refused_in_one_line(tmp_path: Path, model: onnx.ModelProto, reason: str) -> None:
    path = saved(model, tmp_path / "model.onnx")
    with pytest.raises(ImagekinError, match=reason) as caught:
        adopted(path)
    assert len(str(caught.value).splitlines()) == 1
    assert str(tmp_path) not in str(caught.value)
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_an_output_can_be_named(tmp_path: Path) -> None:
    path = saved(two_outputs(), tmp_path / "model.onnx")
    assert adopted(path, AdoptSettings(MEAN, STD, output="out")).metadata.dim == 48
    with pytest.raises(InvalidArgumentError, match="no output 'none'"):
        adopted(path, AdoptSettings(MEAN, STD, output="none"))


@pytest.mark.parametrize(
    "location", ["/etc/hostname", "../secret", "a/../../secret", "link", "", "..\\secret", "folder"]
)
def test_weights_are_read_from_the_models_folder_and_nowhere_else(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(b"\0" * 400)
    folder = tmp_path / "models"
    (folder / "folder").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "secret")
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[48, 2], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    nodes = [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["out"])]
    path = saved(hand_made(nodes, weights=[weight]), folder / "model.onnx")
    with pytest.raises(ImagekinError, match=r"outside its own folder|not beside it"):
        Adoption(path, SETTINGS)


@pytest.mark.parametrize(
    "entries", [{"offset": "-4"}, {"offset": "999999"}, {"length": "99999999999"}, {"offset": "x"}, {"length": "8"}]
)
def test_weights_that_are_not_there_are_refused(tmp_path: Path, entries: dict[str, str]) -> None:
    (tmp_path / "w.data").write_bytes(b"\0" * 384)
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[48, 2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "w.data", **entries}.items():
        weight.external_data.add(key=key, value=value)
    nodes = [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["out"])]
    path = saved(hand_made(nodes, weights=[weight]), tmp_path / "model.onnx")
    with pytest.raises(InvalidArgumentError) as caught:
        adopted(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("data", [b"", b"not onnx", b"\x08\x08", b"\xff" * 100])
def test_no_model_is_no_model(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(data)
    with pytest.raises(InvalidArgumentError, match="not an ONNX model"):
        Adoption(tmp_path / "x.onnx", SETTINGS)


def test_a_damaged_file_gets_past_whole_or_is_refused_in_one_line(conv: tuple[nn.Module, Path], tmp_path: Path) -> None:
    data = conv[1].read_bytes()
    random = np.random.default_rng(0)
    refusals = []
    for _ in range(60):
        changed = bytearray(data)
        for at in random.integers(0, len(data) // 3, 8):
            changed[at] = random.integers(256)
        (tmp_path / "x.onnx").write_bytes(bytes(changed))
        with contextlib.suppress(ImagekinError):
            Adoption(tmp_path / "x.onnx", SETTINGS)
            continue
        refusals.append(1)
    assert refusals


def test_a_graph_that_is_not_the_model_is_refused_and_nothing_is_written(
    conv: tuple[nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice_as_bright(*arguments: object, **options: object) -> onnx.ModelProto:
        model = wrap(*arguments, **options)  # type: ignore[arg-type]
        scale = next(weight for weight in model.graph.initializer if weight.name == "imagekin/scale")
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * 2, scale.name))
        return model

    monkeypatch.setattr(adopt, "wrap", twice_as_bright)
    with pytest.raises(FailedPreconditionError, match="nothing was written"):
        Adoption(conv[1], SETTINGS).write(noise(), tmp_path / "wrong.onnx")
    assert os.listdir(tmp_path) == []


def test_a_preset_prepares_real_photos_as_its_family_does(tmp_path: Path) -> None:
    preset = PRESETS["clip"]
    settings = AdoptSettings(preset.mean, preset.std, interpolation=preset.interpolation)
    path = export(ConvNet(), tmp_path / "conv.onnx")
    records = itertools.islice(open_source(shared_data("grocery-test.tar")), 4)
    prepared = Preprocess(32, 32, "crop", "bicubic")
    photos = np.stack([load_pixels(record.data, prepared) for record in records if isinstance(record.data, bytes)])
    encoder = adopted(path, settings, photos)
    assert read_metadata(path.with_name("adopted.onnx")).preprocess == Preprocess(32, 32, "crop", "bicubic")
    session = ort.InferenceSession(path)
    normal = ((photos / 255.0 - preset.mean) / preset.std).transpose(0, 3, 1, 2).astype(np.float32)
    raw = session.run(None, {"image": normal})[0]
    assert np.abs(encoder.embed_pixels(photos) - raw / np.linalg.norm(raw, axis=1, keepdims=True)).max() <= 1e-5
