"""Read MNIST and Fashion-MNIST as torchvision stores them: four IDX files, plain or gzip-compressed, in NAME/raw.

An IDX file is a few big-endian numbers and then bytes. It is not trusted: its size must be the one in its header, and
that size is bounded before a compressed file is read.
"""

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import InvalidArgumentError, NotFoundError
from imagekin.training.data.arrays import Arrays, Split

_UNSIGNED_BYTE = 0x08
MAX_BYTES = 256 * 2**20
_PREFIXES: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("t10k",), "all": ("train", "t10k")}
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclass(frozen=True, slots=True)
class Mnist:
    """A data set in the format of MNIST.

    Attributes:
        name: its display name.
        folder: torchvision's folder; the files are in `raw` inside it.
        class_names: of the labels 0 to 9.
    """

    name: str
    folder: str
    class_names: tuple[str, ...]

    def is_at(self, path: Path) -> bool:
        """Return whether `path` is the data set's folder, its `raw`, or a folder that holds it."""
        return self._raw(path) is not None

    def places(self, root: Path) -> tuple[Path, ...]:
        """Return the paths where the data set may lie below a folder of data sets."""
        return (root / self.folder,)

    def read(self, path: Path, split: Split) -> Arrays:
        """Read the images of one split, in gray.

        Raises:
            NotFoundError: a file is missing.
            InvalidArgumentError: a file is damaged, or is not what torchvision ships.
        """
        raw = self._raw(path) or path
        pixels, labels = [], []
        keys: list[str] = []
        for prefix in _PREFIXES[split]:
            images = read_idx(_file(raw, f"{prefix}-images-idx3-ubyte"), 3)
            classes = read_idx(_file(raw, f"{prefix}-labels-idx1-ubyte"), 1)
            if len(images) != len(classes):
                raise InvalidArgumentError(
                    f"{raw} has {len(images):,} {prefix} images and {len(classes):,} labels", field="data"
                )
            if len(classes) and classes.max() >= len(self.class_names):
                raise InvalidArgumentError(f"{raw} has {prefix} labels above {len(self.class_names) - 1}", field="data")
            pixels.append(images)
            labels.append(classes.astype(np.int64))
            keys.extend(f"{prefix}/{place:05d}" for place in range(len(classes)))
        if len({images.shape[1:] for images in pixels}) > 1:
            raise InvalidArgumentError(f"{raw} has training and test images of different sizes", field="data")
        if not keys or 0 in pixels[0].shape:
            raise InvalidArgumentError(f"{raw} holds no images", field="data")
        return Arrays(np.concatenate(pixels), np.concatenate(labels), self.class_names, tuple(keys))

    def _raw(self, path: Path) -> Path | None:
        # A bare folder of IDX files does not tell which set it is; the name of one of its parent folders does.
        inside = self.folder in path.parts or self.folder in path.resolve().parts
        folders = [path / self.folder / "raw", path / self.folder]
        if inside:
            folders = [path, path / "raw", *folders]
        return next((folder for folder in folders if _exists(folder, "t10k-labels-idx1-ubyte")), None)


MNIST = Mnist("MNIST", "MNIST", tuple("0123456789"))
FASHION_MNIST = Mnist("Fashion-MNIST", "FashionMNIST", _FASHION)


def read_idx(path: Path, dimensions: Literal[1, 3]) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes.

    Args:
        path: the file; one that ends in .gz is decompressed.
        dimensions: that the array must have.

    Raises:
        InvalidArgumentError: it is no such file, is damaged or cut off, or holds more than `MAX_BYTES`.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:4] != bytes((0, 0, _UNSIGNED_BYTE, dimensions)):
                raise InvalidArgumentError(f"{path} is no IDX file of {dimensions} dimensions", field="data")
            shape = struct.unpack(f">{dimensions}I", head[4:])
            size = 1
            for length in shape:
                size *= length
            if size > MAX_BYTES:
                raise InvalidArgumentError(f"{path} claims {size:,} bytes, more than {MAX_BYTES:,}", field="data")
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidArgumentError(f"{path} is damaged or cut off: {error}", field="data") from error
    if len(data) != size:
        raise InvalidArgumentError(f"{path} does not hold the {size:,} bytes that its head says", field="data")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _exists(folder: Path, name: str) -> bool:
    return (folder / name).is_file() or (folder / f"{name}.gz").is_file()


def _file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise NotFoundError(f"{folder} lacks {name}.gz", field="data")
