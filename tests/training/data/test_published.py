"""CIFAR-100, MNIST and Fashion-MNIST are read as torchvision stores them, by path and by name, and never trusted."""

import gzip
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from imagekin.cli import main as cli
from imagekin.errors import InvalidArgumentError, NotFoundError
from imagekin.training.data.images import has_split, load_images
from imagekin.training.data.mnist import read_idx
from imagekin.training.data.published import published_name, resolve_data
from imagekin.training.presets import recommended
from tests.training.data.test_images import write_cifar


def write_cifar100(root: Path) -> Path:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for name, count in (("train", 20), ("test", 5)):
        batch = {
            b"data": draws.integers(0, 256, (count, 3072), np.uint8),
            b"fine_labels": list(range(50, 50 + count)),
            b"coarse_labels": [0] * count,
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"fine{number}".encode() for number in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": names, b"coarse_label_names": []}, protocol=2))
    return folder


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(root: Path, name: str = "MNIST", zipped: bool = True) -> Path:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for prefix, count in (("train", 20), ("t10k", 10)):
        images = draws.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, data in (("images-idx3", idx(images)), ("labels-idx1", idx(labels))):
            path = raw / f"{prefix}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(data) if zipped else data)
    return root / name


def test_cifar100_has_its_fine_classes_from_folder_parent_and_archive(tmp_path: Path) -> None:
    folder = write_cifar100(tmp_path)
    archive = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as writer:
        writer.add(folder, folder.name)
    for source in (folder, tmp_path, archive):
        assert published_name(source) == "cifar100"
        train, test = (load_images(str(source), size=32, split=split) for split in ("train", "test"))
        assert (len(train), len(test), len(train.class_names)) == (20, 5, 100)
        assert train.labels.tolist() == list(range(50, 70))
        assert train.class_names[50] == "fine50"
    assert load_images(str(archive), size=16).pixels.shape == (25, 16, 16, 3)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("folder", "name"), [("MNIST", "mnist"), ("FashionMNIST", "fashion-mnist")])
def test_idx_files_are_read_from_torchvisions_folder(tmp_path: Path, folder: str, name: str, zipped: bool) -> None:
    path = write_mnist(tmp_path, folder, zipped)
    for source in (path, path / "raw", tmp_path):
        assert published_name(source) == name
        assert has_split(str(source))
        train, test = (load_images(str(source), size=28, split=split) for split in ("train", "test"))
        assert (len(train), len(test)) == (20, 10)
        assert train.labels.tolist() == [*range(10), *range(10)]
        wanted = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
        assert np.array_equal(train.pixels, wanted[..., None].repeat(3, axis=3))
        assert train.class_names[9] == {"mnist": "9", "fashion-mnist": "Ankle boot"}[name]
    assert recommended(str(path), tmp_path).image_size == 28


def test_names_stand_for_what_lies_below_the_data_root(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    write_cifar100(tmp_path)
    write_mnist(tmp_path)
    write_mnist(tmp_path, "FashionMNIST")
    for name in ("cifar10", "cifar100", "mnist", "fashion-mnist"):
        assert published_name(Path(resolve_data(name, tmp_path))) == name
    assert resolve_data("pets.tar", tmp_path) == "pets.tar"
    with pytest.raises(NotFoundError, match="--data-root"):
        resolve_data("cifar10", None)
    with pytest.raises(NotFoundError, match="holds no CIFAR-100"):
        resolve_data("cifar100", tmp_path / "cifar-10-batches-py")


def test_the_command_trains_on_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mnist(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEKIN_DATA_ROOT", "data")
    assert cli.run(["train", "mnist", "--epochs", "0", "--out", "run"]) == 0
    assert "10 held-out images" in capsys.readouterr().out


IMAGES = np.zeros((20, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no IDX file"),
        (b"not an idx file at all", "no IDX file"),
        (idx(IMAGES)[:-1], "does not hold"),
        (idx(IMAGES) + b"x", "does not hold"),
        (idx(IMAGES[0]), "no IDX file"),
        (bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1), "claims"),
        (bytes((0, 0, 13, 3)) + struct.pack(">3I", 1, 1, 1), "no IDX file"),
        (idx(np.zeros((19, 28, 28), np.uint8)), "19 train images and 20 labels"),
        (idx(np.zeros((20, 27, 28), np.uint8)), "different sizes"),
    ],
)
def test_a_damaged_idx_file_is_said_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = write_mnist(tmp_path)
    (path / "raw" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(data))
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        load_images(str(path), size=28)
    assert "\n" not in str(caught.value)


def test_a_cut_off_gzip_a_missing_file_and_labels_out_of_range_are_said(tmp_path: Path) -> None:
    path = write_mnist(tmp_path)
    labels = path / "raw" / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(np.full(20, 10, np.uint8))))
    with pytest.raises(InvalidArgumentError, match="labels above 9"):
        load_images(str(path), size=28, split="train")
    labels.write_bytes(labels.read_bytes()[:-9])
    with pytest.raises(InvalidArgumentError, match="damaged or cut off"):
        load_images(str(path), size=28, split="train")
    labels.unlink()
    with pytest.raises(NotFoundError, match="train-labels"):
        load_images(str(path), size=28, split="train")
    assert len(load_images(str(path), size=28, split="test")) == 10


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(bytes((0, 0, 8, 1)) + struct.pack(">I", 100))
        for _ in range(64):
            file.write(bytes(2**20))
    with pytest.raises(InvalidArgumentError, match="does not hold the 100 bytes"):
        read_idx(path, 1)
