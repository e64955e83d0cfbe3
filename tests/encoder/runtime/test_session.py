"""Artifacts and the session that runs them: the graph's promise, and a clear word for every wrong file."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

from imagekin.encoder.artifact import load_graph, new_space_id, read_metadata, write
from imagekin.encoder.decoding import decode
from imagekin.encoder.metadata import Metadata
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import FailedPreconditionError, ImageError, InvalidArgumentError, NotFoundError
from tests.artifacts import tiny_artifact, tiny_graph, tiny_metadata

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("model") / "tiny.onnx", classes=CLASSES)


@pytest.fixture(scope="module")
def encoder(model: Path) -> Encoder:
    return Encoder.open(model, device="cpu", threads=1)


def noise(count: int, seed: int = 0, size: int = 8) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def png(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_embeddings_are_float32_finite_and_of_unit_length(encoder: Encoder) -> None:
    outputs = encoder.run(noise(5))
    assert outputs.embeddings.shape == (5, 16)
    assert outputs.embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(outputs.embeddings, axis=1), 1, atol=1e-5)
    assert outputs.logits is not None
    assert outputs.logits.shape == (5, 3)


def test_a_model_without_head_has_no_logits(tmp_path: Path) -> None:
    outputs = Encoder.open(tiny_artifact(tmp_path / "plain.onnx")).run(noise(2))
    assert outputs.logits is None


def test_alike_images_get_alike_embeddings(encoder: Encoder) -> None:
    first, other = noise(2)
    nearly = np.clip(first.astype(int) + 3, 0, 255).astype(np.uint8)
    one, two, three = encoder.embed_pixels(np.stack([first, nearly, other]))
    assert one @ two > 0.99 > one @ three


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40))
def test_an_image_embeds_the_same_in_any_batch(encoder: Encoder, count: int, part: int) -> None:
    pixels = noise(count)
    whole = encoder.embed_pixels(pixels)
    parts = np.concatenate([encoder.embed_pixels(pixels[at : at + part]) for at in range(0, count, part)])
    np.testing.assert_allclose(whole, parts, atol=1e-5)


def test_a_long_batch_is_run_in_chunks_with_the_same_result(encoder: Encoder) -> None:
    pixels = noise(2500)
    whole = encoder.run(pixels)
    assert whole.logits is not None
    np.testing.assert_allclose(whole.embeddings[2000:2010], encoder.embed_pixels(pixels[2000:2010]), atol=1e-5)
    assert whole.logits.shape == (2500, 3)


def test_bytes_and_pixels_embed_the_same(encoder: Encoder) -> None:
    pixels = noise(3)
    np.testing.assert_allclose(encoder.embed([png(image) for image in pixels]), encoder.embed_pixels(pixels), atol=1e-5)


def test_no_images_make_no_embeddings(encoder: Encoder) -> None:
    assert encoder.embed_pixels(noise(0)).shape == (0, 16)
    assert encoder.embed([]).shape == (0, 16)
    logits = encoder.run(noise(0)).logits
    assert logits is not None
    assert logits.shape == (0, 3)


def test_a_bad_image_is_an_image_error(encoder: Encoder) -> None:
    with pytest.raises(ImageError):
        encoder.embed([png(noise(1)[0]), b"not an image"])
    with pytest.raises(ImageError, match="over the limit of 10 bytes"):
        encoder.load_pixels(png(noise(1)[0]), decode.DecodeLimits(max_bytes=10))


def test_threads_share_one_encoder(encoder: Encoder) -> None:
    batches = [noise(7, seed) for seed in range(32)]
    alone = [encoder.embed_pixels(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(encoder.embed_pixels, batches))
    np.testing.assert_allclose(np.stack(alone), np.stack(together), atol=1e-6)


@pytest.mark.parametrize(
    "pixels",
    [
        noise(2).astype(np.float32),
        noise(2, size=9),
        noise(2)[0],
        noise(2)[..., :1],
        noise(2).tolist(),
    ],
    ids=["float", "size", "no batch", "grey", "list"],
)
def test_pixels_of_another_kind_are_refused(encoder: Encoder, pixels: object) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^pixels must"):
        encoder.run(pixels)  # type: ignore[arg-type]


def test_views_into_larger_arrays_are_accepted(encoder: Encoder) -> None:
    wide = noise(3, size=16)
    np.testing.assert_allclose(encoder.embed_pixels(wide[:, ::2, ::2]), encoder.embed_pixels(wide[:, ::2, ::2].copy()))


def test_metadata_and_name_come_from_the_file(model: Path, encoder: Encoder) -> None:
    assert encoder.name == "tiny"
    assert Encoder.open(model, name="other").name == "other"
    assert encoder.metadata.class_names == CLASSES
    assert read_metadata(model) == encoder.metadata
    assert encoder.device == "cpu"


def test_cuda_is_taken_only_when_it_is_there(model: Path) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("needs an ONNX Runtime without CUDA")
    with pytest.raises(FailedPreconditionError, match="no CUDA here"):
        Encoder.open(model, device="cuda")
    assert Encoder.open(model, device="auto").device == "cpu"


def test_wrong_options_are_refused(model: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="threads"):
        Encoder.open(model, threads=0)
    with pytest.raises(InvalidArgumentError, match="device"):
        Encoder.open(model, device="tpu")  # type: ignore[arg-type]


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    for call in (Encoder.open, read_metadata, load_graph):
        with pytest.raises(NotFoundError, match="no model file"):
            call(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a" * 100, os.urandom(4096)])
def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=r"^odd\.onnx [^\n]*$"):
        Encoder.open(path)


def test_a_cut_off_model_is_refused_in_one_line(model: Path, tmp_path: Path) -> None:
    whole = model.read_bytes()
    path = tmp_path / "cut.onnx"
    for length in range(1, len(whole), len(whole) // 23):
        path.write_bytes(whole[:length])
        with pytest.raises(InvalidArgumentError, match=r"^cut\.onnx[^\n]*$"):
            Encoder.open(path)


def test_a_foreign_onnx_file_is_told_to_be_exported(tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    onnx.save(tiny_graph(), path)
    with pytest.raises(InvalidArgumentError, match="holds no imagekin metadata"):
        Encoder.open(path)


def test_broken_metadata_are_named(tmp_path: Path) -> None:
    graph = tiny_graph()
    helper.set_model_props(graph, {"imagekin": '{"space": "s", "dim": 0, "preprocess": {"height": 8, "width": 8}}'})
    path = tmp_path / "odd.onnx"
    onnx.save(graph, path)
    with pytest.raises(InvalidArgumentError, match=r"odd\.onnx: model metadata 'dim' must be"):
        Encoder.open(path)


def rename_input(graph: onnx.ModelProto) -> None:
    graph.graph.input[0].name = graph.graph.node[0].input[0] = "images"


def rename_output(graph: onnx.ModelProto) -> None:
    graph.graph.output[0].name = graph.graph.node[-1].output[0] = "features"


def float_input(graph: onnx.ModelProto) -> None:
    graph.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def fixed_batch(graph: onnx.ModelProto) -> None:
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def no_length(graph: onnx.ModelProto) -> None:
    graph.graph.node[-1].op_type = "Add"


def not_finite(graph: onnx.ModelProto) -> None:
    """Divide what is subtracted from itself by itself."""
    graph.graph.node[2].input[1] = "unit"
    bias = next(weight for weight in graph.graph.initializer if weight.name == "bias")
    bias.raw_data = bytes(len(bias.raw_data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_input, "one input, named 'pixels'"),
        (rename_output, "no output named 'embedding'"),
        (float_input, r"must be tensor\(uint8\)"),
        (fixed_batch, "fixed batch size"),
        (no_length, "not of unit length"),
        (not_finite, "not finite"),
    ],
)
def test_a_graph_that_breaks_the_promise_is_refused(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    graph = tiny_graph()
    metadata = tiny_metadata(graph)
    change(graph)
    path = tmp_path / "model.onnx"
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        write(graph, metadata, path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_metadata_that_do_not_fit_the_graph_are_refused(tmp_path: Path) -> None:
    graph = tiny_graph(classes=2)
    metadata = tiny_metadata(graph, classes=("a", "b"))
    for wrong, message in [
        (replace(metadata, dim=17), r"must have the shape \[N, 17\]"),
        (replace(metadata, class_names=()), "name no classes"),
        (replace(metadata, class_names=("a", "b", "c")), r"\[N, 3\]"),
        (replace(metadata, preprocess=replace(metadata.preprocess, height=9)), r"\[N, 9, 8, 3\]"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            write(graph, wrong, tmp_path / "model.onnx")
    with pytest.raises(InvalidArgumentError, match="there is no output 'logits'"):
        write(tiny_graph(), metadata, tmp_path / "model.onnx")


def test_a_failed_write_leaves_the_old_file_alone(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.read_bytes())
    graph = tiny_graph()
    with pytest.raises(InvalidArgumentError):
        write(graph, replace(tiny_metadata(graph), dim=3), path)
    assert path.read_bytes() == model.read_bytes()


def test_rewriting_metadata_keeps_the_graph_and_the_other_properties(model: Path, tmp_path: Path) -> None:
    graph = load_graph(model)
    graph.metadata_props.add(key="author", value="somebody")
    metadata = replace(read_metadata(model), dataset="photos", scores={"knn_accuracy": 0.5})
    path = write(graph, metadata, tmp_path / "new.onnx")
    assert read_metadata(path) == metadata
    properties = {entry.key: entry.value for entry in load_graph(path).metadata_props}
    assert properties["author"] == "somebody"
    assert Metadata.from_json(properties["imagekin"]) == metadata
    pixels = noise(2)
    np.testing.assert_array_equal(Encoder.open(path).embed_pixels(pixels), Encoder.open(model).embed_pixels(pixels))


def test_a_space_is_the_weights_whatever_their_order() -> None:
    weights = [("a", b"12"), ("b", b"3")]
    space = new_space_id(weights)
    assert space == new_space_id(reversed(weights))
    assert space == "ik1-" + space.removeprefix("ik1-").lower()
    assert len(space) == 36
    assert len({space, new_space_id([("a", b"1"), ("b", b"23")]), new_space_id([("ab", b"123")])}) == 3


def test_opening_and_refusing_say_nothing_on_their_own(model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(model.read_bytes()[:-40])
    code = f"""
from pathlib import Path
from imagekin.encoder.runtime.session import Encoder
Encoder.open(Path({str(model)!r}))
try:
    Encoder.open(Path({str(bad)!r}))
except Exception:
    pass
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_light_modules_need_neither_onnx_runtime_nor_torch() -> None:
    code = """
import sys
import imagekin.encoder.decoding.decode, imagekin.encoder.metadata, imagekin.errors, imagekin.encoder.artifact
print(sorted({"onnxruntime", "onnx", "torch", "faiss"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
