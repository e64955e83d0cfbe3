"""CIFAR-10 in the form that torchvision downloads: pickled batches, read without trusting the pickle.

A pickle can call anything that it can name. This reader lets it name four things, each of which is replaced by an
inert stand-in that only keeps what it is given; no code of numpy's, or anybody's, runs on the pickle's behalf. What
comes out is checked before it becomes an array.
"""

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from encoder.errors import InvalidArgumentError, NotFoundError
from training.sources import Entry, is_archive, read_archive

FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILES = ("test_batch",)
META_FILE = "batches.meta"
MAX_BYTES = 64 * 2**20
SIDE = 32


def is_cifar(path: Path) -> bool:
    """Say whether `path` is torchvision's CIFAR-10: its folder, a folder holding that, or its archive."""
    if path.is_dir():
        return (path / META_FILE).is_file() or (path / FOLDER / META_FILE).is_file()
    return is_archive(path) and path.name.startswith("cifar-10-python")


def read_cifar(
    path: Path, split: Literal["train", "test", "all"]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...], tuple[str, ...]]:
    """Read CIFAR-10.

    Returns:
        Pixels uint8 [N, 32, 32, 3], labels int64 [N], the class names, and a key for each image.

    Raises:
        InvalidArgumentError: a file is missing, damaged, or not what torchvision ships.
    """
    wanted = {"train": TRAIN_FILES, "test": TEST_FILES, "all": TRAIN_FILES + TEST_FILES}[split]
    batches: dict[str, dict[bytes, Any]] = {}
    for entry in _entries(path, (*wanted, META_FILE)):
        batches[PurePosixPath(entry.name).name] = _load(entry)
    missing = [name for name in (*wanted, META_FILE) if name not in batches]
    if missing:
        raise InvalidArgumentError(f"{path} lacks CIFAR-10's {missing[0]}", field="data")
    names = batches[META_FILE].get(b"label_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes) for name in names):
        raise InvalidArgumentError(f"{path}: {META_FILE} holds no class names", field="data")
    pixels, labels = [], []
    keys: list[str] = []
    for name in wanted:
        images, classes = _batch(batches[name], name, len(names))
        pixels.append(images)
        labels.append(classes)
        keys.extend(f"{name}/{position:05d}" for position in range(len(classes)))
    class_names = tuple(name.decode("ascii", "replace") for name in names)
    return np.concatenate(pixels), np.concatenate(labels), class_names, tuple(keys)


def _entries(path: Path, wanted: tuple[str, ...]) -> Iterator[Entry]:
    if not path.is_dir():
        yield from read_archive(path, MAX_BYTES, lambda name: PurePosixPath(name).name in wanted)
        return
    folder = path if (path / META_FILE).is_file() else path / FOLDER
    for name in wanted:
        try:
            yield Entry(name, (folder / name).read_bytes())
        except FileNotFoundError as error:
            raise NotFoundError(f"{folder} lacks CIFAR-10's {name}", field="data") from error


def _batch(batch: dict[bytes, Any], name: str, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Check one batch and return pixels uint8 [N, 32, 32, 3] and labels int64 [N]."""
    data, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(data, _Array) or not isinstance(labels, list):
        raise InvalidArgumentError(f"CIFAR-10's {name} holds no images and labels", field="data")
    if not all(type(label) is int and 0 <= label < classes for label in labels):
        raise InvalidArgumentError(f"CIFAR-10's {name} has labels outside 0…{classes - 1}", field="data")
    width = 3 * SIDE * SIDE
    if data.shape != (len(labels), width) or not isinstance(data.raw, bytes) or len(data.raw) != len(labels) * width:
        raise InvalidArgumentError(f"CIFAR-10's {name} does not hold {width} bytes an image", field="data")
    order: Literal["F", "C"] = "F" if data.fortran else "C"
    flat = np.frombuffer(data.raw, np.uint8).reshape(len(labels), width, order=order)
    planes = flat.reshape(-1, 3, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.asarray(labels, np.int64)


class _Array:
    """Stands in for a pickled numpy array: keeps its shape and bytes.

    Attributes:
        shape: as pickled.
        fortran: whether the bytes are in column-major order.
        raw: the bytes.
    """

    shape: object = None
    fortran: object = False
    raw: object = None

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], _Dtype) and state[2].code == "u1":
            _, self.shape, _, self.fortran, self.raw = state


class _Dtype:
    """Stands in for a pickled numpy dtype: keeps its code."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code = code.decode("ascii", "replace") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        pass


class _Inert:
    """Stands in for `numpy.ndarray`, which a pickle only passes on."""


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """Stand in for `_codecs.encode`, with which Python 3 writes bytes into old pickles."""
    if not isinstance(text, str):
        raise pickle.UnpicklingError("bytes were expected")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Inert,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no image needs") from None


def _load(entry: Entry) -> dict[bytes, Any]:
    name = PurePosixPath(entry.name).name
    if entry.problem:
        raise InvalidArgumentError(f"CIFAR-10's {name}: {entry.problem}", field="data")
    try:
        value = _Unpickler(io.BytesIO(entry.data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InvalidArgumentError(f"CIFAR-10's {name} is damaged: {error}", field="data") from error
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"CIFAR-10's {name} is damaged: it holds no mapping", field="data")
    return value
