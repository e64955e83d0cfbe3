"""A model artifact small enough for tests, made without torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from imagekin.encoder.artifact import new_space_id, write
from imagekin.encoder.metadata import Metadata, Preprocess


def tiny_graph(*, size: int = 8, dim: int = 16, seed: int = 0, classes: int = 0) -> onnx.ModelProto:
    """Return a graph that projects pixels at random to `dim` components of unit length: alike images stay alike."""
    rng = np.random.default_rng(seed)
    side = size * size * 3
    weights = {
        "scale": np.float32(1 / 255),
        "mean": np.float32(0.5),
        "flat": np.array([0, side], np.int64),
        "projection": rng.normal(size=(side, dim)).astype(np.float32) / np.float32(np.sqrt(side)),
        # Keeps a uniformly grey image from having no direction at all.
        "bias": rng.normal(size=dim).astype(np.float32) * np.float32(0.01),
        "axes": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["unit"]),
        helper.make_node("Sub", ["unit", "mean"], ["centred"]),
        helper.make_node("Reshape", ["centred", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "projection"], ["projected"]),
        helper.make_node("Add", ["projected", "bias"], ["biased"]),
        helper.make_node("ReduceL2", ["biased", "axes"], ["length"], keepdims=1),
        helper.make_node("Div", ["biased", "length"], ["embedding"]),
    ]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", dim])]
    if classes:
        weights["head"] = rng.normal(size=(dim, classes)).astype(np.float32)
        nodes.append(helper.make_node("MatMul", ["embedding", "head"], ["logits"]))
        outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", size, size, 3])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def tiny_metadata(
    model: onnx.ModelProto, *, size: int = 8, dim: int = 16, classes: Sequence[str] = (), resize: str = "squash"
) -> Metadata:
    """Return metadata that fit `tiny_graph`."""
    space = new_space_id((weight.name, weight.raw_data) for weight in model.graph.initializer)
    preprocess = Preprocess(size, size, resize)  # type: ignore[arg-type]
    return Metadata(space, dim, preprocess, class_names=tuple(classes), objective="random", dataset="none")


def tiny_artifact(path: Path, *, size: int = 8, dim: int = 16, seed: int = 0, classes: Sequence[str] = ()) -> Path:
    """Write a tiny model artifact and return its path.

    Args:
        path: file to write.
        size: height and width of its input in pixels.
        dim: number of components of its embeddings.
        seed: of its random weights; another seed is another embedding space.
        classes: class names; gives it a linear head (with random weights) when not empty.
    """
    model = tiny_graph(size=size, dim=dim, seed=seed, classes=len(classes))
    return write(model, tiny_metadata(model, size=size, dim=dim, classes=classes), path)
