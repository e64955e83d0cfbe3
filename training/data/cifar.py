"""Read CIFAR-10 and CIFAR-100 as torchvision downloads them: pickled batches, read without trusting the pickle.

A pickle can call anything that it can name. This reader allows four names and replaces each by an inert placeholder
that only stores its arguments, so that a pickle runs no code of numpy or of anything else. The result is checked before
it becomes an array.
"""

import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import InvalidArgumentError, NotFoundError
from imagekin.sources.formats.tar_members import read_members
from imagekin.sources.suffixes import TAR_SUFFIXES
from imagekin.training.data.arrays import Arrays, Split

MAX_BYTES = 256 * 2**20
SIDE = 32


@dataclass(frozen=True, slots=True)
class Cifar:
    """One of the two sets, as torchvision stores it.

    Attributes:
        name: its display name.
        folder: its folder, which is also the folder in its archive.
        archive: its archive without the suffix.
        train: files of the training images.
        test: files of the test images.
        meta: file of the class names.
        labels: key of the labels in a batch.
        names: key of the class names in `meta`.
    """

    name: str
    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: bytes
    names: bytes

    def is_at(self, path: Path) -> bool:
        """Return whether `path` is the data set: its folder, a folder that holds that, or its archive."""
        if path.is_dir():
            return any((folder / self.meta).is_file() for folder in self._folders(path))
        return path.name.startswith(self.archive) and path.name.endswith(TAR_SUFFIXES) and path.is_file()

    def places(self, root: Path) -> tuple[Path, ...]:
        """Return the paths where the data set may lie below a folder of data sets."""
        return root / self.folder, root / f"{self.archive}.tar.gz"

    def read(self, path: Path, split: Split) -> Arrays:
        """Read the images of one split; labels are the 100 fine ones for CIFAR-100.

        Raises:
            NotFoundError: a file is missing from the folder.
            InvalidArgumentError: a file is missing from the archive, damaged, or not what torchvision ships.
        """
        wanted = {"train": self.train, "test": self.test, "all": self.train + self.test}[split]
        batches = {name: self._load(name, data) for name, data in self._entries(path, (*wanted, self.meta))}
        missing = [name for name in (*wanted, self.meta) if name not in batches]
        if missing:
            raise InvalidArgumentError(f"{path} lacks {self.name}'s {missing[0]}", field="data")
        names = batches[self.meta].get(self.names)
        if not isinstance(names, list) or not names or not all(isinstance(name, bytes) for name in names):
            raise InvalidArgumentError(f"{path}: {self.meta} holds no class names", field="data")
        parts = [self._batch(batches[name], name, len(names)) for name in wanted]
        keys = [
            f"{name}/{place:05d}" for name, part in zip(wanted, parts, strict=True) for place in range(len(part[1]))
        ]
        class_names = tuple(name.decode("ascii", "replace") for name in names)
        pixels, labels = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
        return Arrays(pixels, labels, class_names, tuple(keys))

    def _folders(self, path: Path) -> tuple[Path, ...]:
        # Any folder may hold a file named "meta", as CIFAR-100's does, so the folder's name must match as well.
        own = (path,) if path.name == self.folder or self.meta != "meta" else ()
        return (*own, path / self.folder)

    def _entries(self, path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
        if not path.is_dir():
            for member, data in read_members(path, lambda name: PurePosixPath(name).name in wanted, MAX_BYTES):
                yield PurePosixPath(member).name, data
            return
        folder = next(folder for folder in self._folders(path) if (folder / self.meta).is_file())
        for name in wanted:
            try:
                yield name, (folder / name).read_bytes()
            except FileNotFoundError as error:
                raise NotFoundError(f"{folder} lacks {self.name}'s {name}", field="data") from error

    def _batch(self, batch: dict[bytes, Any], name: str, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Check one batch and return pixels uint8 [N, 32, 32, 3] and labels int64 [N]."""
        data, labels = batch.get(b"data"), batch.get(self.labels)
        where = f"{self.name}'s {name}"
        if not isinstance(data, _Array) or not isinstance(labels, list):
            raise InvalidArgumentError(f"{where} holds no images and labels", field="data")
        if not all(type(label) is int and 0 <= label < classes for label in labels):
            raise InvalidArgumentError(f"{where} has labels outside 0…{classes - 1}", field="data")
        width, count = 3 * SIDE * SIDE, len(labels)
        if data.shape != (count, width) or not isinstance(data.raw, bytes) or len(data.raw) != count * width:
            raise InvalidArgumentError(f"{where} does not hold {width} bytes an image", field="data")
        order: Literal["F", "C"] = "F" if data.fortran else "C"
        flat = np.frombuffer(data.raw, np.uint8).reshape(count, width, order=order)
        planes = flat.reshape(-1, 3, SIDE, SIDE)
        return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.asarray(labels, np.int64)

    def _load(self, name: str, data: bytes) -> dict[bytes, Any]:
        try:
            value = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        except Exception as error:  # a damaged pickle raises nearly anything
            raise InvalidArgumentError(f"{self.name}'s {name} is damaged: {error}", field="data") from error
        if not isinstance(value, dict):
            raise InvalidArgumentError(f"{self.name}'s {name} is damaged: it holds no mapping", field="data")
        return value


CIFAR10 = Cifar(
    name="CIFAR-10",
    folder="cifar-10-batches-py",
    archive="cifar-10-python",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test=("test_batch",),
    meta="batches.meta",
    labels=b"labels",
    names=b"label_names",
)
CIFAR100 = Cifar(
    name="CIFAR-100",
    folder="cifar-100-python",
    archive="cifar-100-python",
    train=("train",),
    test=("test",),
    meta="meta",
    labels=b"fine_labels",
    names=b"fine_label_names",
)


class _Array:
    """Placeholder for a pickled numpy array: keeps its shape and bytes.

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
    """Placeholder for a pickled numpy dtype: keeps its code."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code = code.decode("ascii", "replace") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        pass


class _Inert:
    """Placeholder for `numpy.ndarray`, which a pickle only passes on."""


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """Replace `_codecs.encode`, with which Python 3 writes bytes into old pickles."""
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
