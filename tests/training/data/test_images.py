"""Training images come from anywhere the same, hostile archives do no harm, and what is wrong is said in one line."""

import gzip
import io
import logging
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imagekin.encoder.decoding.decode import load_pixels
from imagekin.encoder.metadata import Preprocess
from imagekin.errors import InvalidArgumentError, NotFoundError
from imagekin.sources.records import OTHER_IMAGE, OTHER_LABEL
from imagekin.training.data.cifar import CIFAR10
from imagekin.training.data.images import data_name, has_split, load_images
from tests.data import shared_data
from tests.sources.pictures import tar_bytes


def png(seed: int, size: int = 12) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {
    "cat/a.png": png(1),
    "cat/b.png": png(2),
    "dog/a.png": png(3),
    "dog/b.PNG": png(4),
    "dog/c.png": png(5),
    "README.md": b"read me",
    "cat/.hidden.png": b"nothing",
}


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_folder_and_archives_give_the_same_set(tmp_path: Path) -> None:
    reversed_files = dict(reversed(FILES.items()))
    sources = [
        write_folder(tmp_path / "pets", FILES),
        write_tar(tmp_path / "pets.tar", reversed_files),
        write_tar(tmp_path / "pets.tar.gz", {f"./{name}": data for name, data in FILES.items()}, "w:gz"),
        write_tar(tmp_path / "pets.tgz", {f"some/where/{name}": data for name, data in FILES.items()}, "w:gz"),
    ]
    sets = [load_images(str(source), size=8) for source in sources]
    for images in sets:
        assert images.class_names == ("cat", "dog")
        assert images.labels.tolist() == [0, 0, 1, 1, 1]
        assert images.name == "pets"
        assert images.failed == ()
        assert np.array_equal(images.pixels, sets[0].pixels)
    assert sets[0].keys == ("cat/a.png", "cat/b.png", "dog/a.png", "dog/b.PNG", "dog/c.png")
    assert np.array_equal(sets[0].pixels[2], load_pixels(FILES["dog/a.png"], Preprocess(height=8, width=8)))


def test_bad_files_are_counted_and_named_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_folder(tmp_path / "pets", FILES | {"dog/broken.jpg": b"\xff\xd8 no", "outside.png": png(9)})
    with caplog.at_level(logging.WARNING):
        images = load_images(str(root), size=8)
    assert len(images) == 5
    assert [key for key, _ in images.failed] == ["dog/broken.jpg", "outside.png"]
    assert len(caplog.messages) == 1
    assert "2 of 7 files left out" in caplog.text
    assert "dog/broken.jpg" in caplog.text


def test_limit_keeps_the_first_of_each_class(tmp_path: Path) -> None:
    folder, archive = write_folder(tmp_path / "pets", FILES), write_tar(tmp_path / "pets.tar", FILES)
    for source in (folder, archive):
        assert load_images(str(source), size=8, limit=2).keys == ("cat/a.png", "cat/b.png", "dog/a.png", "dog/b.PNG")
    digits = load_images("digits", size=8, limit=3)
    assert np.bincount(digits.labels).tolist() == [3] * 10


def test_nested_class_folders_keep_their_path_where_names_repeat(tmp_path: Path) -> None:
    files = {f"{alphabet}/character01/{i}.png": png(i) for alphabet in ("Greek", "Latin") for i in range(2)}
    assert load_images(str(write_folder(tmp_path / "a", files)), size=8).class_names == (
        "Greek/character01",
        "Latin/character01",
    )


def test_the_splits_of_a_source_are_its_training_and_test_images(tmp_path: Path) -> None:
    files = {"Training/cat/a.png": png(1), "Training/dog/b.png": png(2), "Testing/cat/c.png": png(3)}
    root = str(write_folder(tmp_path, files | {"Valid/dog/d.png": png(4)}))
    assert has_split(root)
    train, test = load_images(root, size=8, split="train"), load_images(root, size=8, split="test")
    assert (train.keys, train.class_names) == (("Training/cat/a.png", "Training/dog/b.png"), ("cat", "dog"))
    assert test.keys == ("Testing/cat/c.png",)


@pytest.mark.parametrize("splits", [("train", "test"), ("test", "train"), ("seg_train", "seg_test")])
def test_test_images_far_back_in_an_archive_are_not_trained_on(tmp_path: Path, splits: tuple[str, str]) -> None:
    """The folders of a compressed archive are judged by its first thousand images, which may be of one split."""
    images = [png(seed) for seed in range(2)]
    counts = {splits[0]: 1002, splits[1]: 6}
    files = {
        f"{split}/{'ab'[number % 2]}/{number}.png": images[number % 2]
        for split, count in counts.items()
        for number in range(count)
    }
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(tar_bytes(files), 1))
    spec = str(tmp_path / "x.tar.gz")
    test, train = sorted(splits)
    assert has_split(spec)
    loaded = {split: load_images(spec, size=8, split=split) for split in ("train", "test")}
    assert {split: len(found) for split, found in loaded.items()} == {"train": counts[train], "test": counts[test]}
    assert loaded["train"].class_names == loaded["test"].class_names == ("a", "b")


def test_nobody_is_judged_on_test_images_without_labels_or_trained_on_them(tmp_path: Path) -> None:
    root = str(write_folder(tmp_path, {"train/cat/a.png": png(1), "train/dog/b.png": png(2), "test/c.png": png(3)}))
    assert not has_split(root)
    assert load_images(root, size=8).keys == ("train/cat/a.png", "train/dog/b.png")
    with pytest.raises(InvalidArgumentError, match="--test"):
        load_images(root, size=8, split="test")
    write_folder(tmp_path, {"val/dog/d.png": png(4)})
    assert load_images(root, size=8, split="test").keys == ("val/dog/d.png",)


def test_the_user_may_say_what_names_classes(tmp_path: Path) -> None:
    root = str(write_folder(tmp_path, {"x/cat_1.png": png(1), "y/dog_1.png": png(2)}))
    assert load_images(root, size=8, label_from=r"(\w+)_").class_names == ("cat", "dog")
    assert load_images(root, size=8, label_from="none").class_names == ()


def test_images_without_class_folders_have_no_labels(tmp_path: Path) -> None:
    images = load_images(str(write_folder(tmp_path, {"a.png": png(1), "b.png": png(2)})), size=8)
    assert images.class_names == ()
    assert images.labels.tolist() == [-1, -1]


def empty(root: Path) -> Path:
    (root / "empty").mkdir()
    return root / "empty"


def all_broken(root: Path) -> Path:
    return write_folder(root / "broken", {"cat/a.png": b"x", "cat/b.png": b""})


def not_a_tar(root: Path) -> Path:
    return write_folder(root, {"x.tar": b"this is no archive" * 100}) / "x.tar"


def cut_off(mode: str) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        path = write_tar(root / f"x{mode}", FILES | {"dog/z.png": png(1, 200)}, "w:gz" if "gz" in mode else "w")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return path

    return write


def a_file(root: Path) -> Path:
    return write_folder(root, {"x.txt": b"a,b"}) / "x.txt"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty, "no image could be read"),
        (all_broken, "all 2 failed, the first: cat/a.png"),
        (not_a_tar, "cut off or damaged"),
        (cut_off(".tar"), "cut off"),
        (cut_off(".tar.gz"), "cut off"),
        (a_file, "no folder"),
    ],
)
def test_an_unusable_source_is_said_in_one_line(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        load_images(str(make(tmp_path)), size=8)
    assert "\n" not in str(caught.value)


def test_a_missing_source_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="no file or folder"):
        load_images("no/such/folder", size=8)
    with pytest.raises(NotFoundError, match="no file or folder"):
        load_images("no-such.tar", size=8)


def test_hostile_members_are_refused_one_by_one(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"cat/ok.png": png(1), "dog/ok.png": png(2)})
    with tarfile.open(path, "a") as archive:
        for name, kind, target in (
            ("cat/link.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("cat/hard.png", tarfile.LNKTYPE, "cat/ok.png"),
            ("cat/device.png", tarfile.CHRTYPE, ""),
            ("cat/fifo.png", tarfile.FIFOTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
        for name in ("../../cat/up.png", "/cat/absolute.png", "cat/../../up.png"):
            member = tarfile.TarInfo(name)
            member.size = len(FILES["cat/a.png"])
            archive.addfile(member, io.BytesIO(FILES["cat/a.png"]))
    images = load_images(str(path), size=8)
    assert images.keys == ("cat/ok.png", "dog/ok.png")
    assert len(images.failed) == 7


def test_of_two_members_of_one_name_the_first_counts_as_in_indexing(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"cat/a.png": png(1), "dog/a.png": png(2)})
    with tarfile.open(path, "a") as archive:
        for data in (png(3), png(1)):
            member = tarfile.TarInfo("cat/a.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    images = load_images(str(path), size=8)
    assert images.keys == ("cat/a.png", "dog/a.png")
    assert np.array_equal(images.pixels[0], load_pixels(png(1), Preprocess(height=8, width=8)))
    assert images.failed == (("cat/a.png", OTHER_IMAGE),), "the same image again is no failure"


def test_of_two_labels_the_first_counts_and_a_bad_row_costs_one_image(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.png": png(1), "b.png": png(2)})
    table = tmp_path / "table.csv"
    table.write_text("Path; Label\na.png; cat\na.png; dog\nb.png;  dog\nc.png\n")
    images = load_images(str(table), size=8)
    assert [images.class_names[label] for label in images.labels] == ["cat", "dog"]
    assert images.failed[0] == ("a.png", OTHER_LABEL)
    assert images.failed[1][0] == "table.csv:5"


def test_real_archives_are_read_whole() -> None:
    images = load_images(str(shared_data("grocery-test.tar")), size=16, limit=3)
    assert len(images.class_names) == 81
    assert np.bincount(images.labels).max() == 3
    assert images.failed == ()


def test_hostile_images_end_up_among_the_failed(recwarn: pytest.WarningsRecorder) -> None:
    images = load_images(str(shared_data("hostile-images.tar")), size=16)
    assert len(images) > 300
    assert images.failed
    assert all(reason and "\n" not in reason for _, reason in images.failed)


def test_digits_have_a_fixed_stratified_split() -> None:
    assert has_split("digits")
    train, test, everything = (load_images("digits", size=8, split=split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (1437, 360, 1797)
    assert not set(train.keys) & set(test.keys)
    assert set(train.keys) | set(test.keys) == set(everything.keys)
    assert np.bincount(test.labels).min() >= 34
    assert load_images("digits", size=8, split="test").keys == test.keys
    assert everything.pixels.max() == 255
    assert everything.pixels.shape == (1797, 8, 8, 3)


def test_a_source_without_a_split_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="--test"):
        load_images(str(write_folder(tmp_path, FILES)), size=8, split="test")


def test_names_for_people() -> None:
    assert data_name("a/b/pets.tar.gz") == "pets"
    assert data_name("a/b/pets") == "pets"
    assert data_name("digits") == "digits"


def write_cifar(root: Path, per_batch: int = 4) -> tuple[Path, NDArray[np.uint8]]:
    """Write CIFAR-10's folder, pickled as the original is: protocol 2, keys as bytes."""
    folder = root / CIFAR10.folder
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    everything = []
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        data = draws.integers(0, 256, (per_batch, 3072), np.uint8)
        labels = draws.integers(0, 10, per_batch).tolist()
        everything.append(data)
        (folder / name).write_bytes(pickle.dumps({b"data": data, b"labels": labels}, protocol=2))
    names = [f"class{number}".encode() for number in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
    return folder, np.concatenate(everything)


def test_cifar_is_read_from_folder_parent_and_archive(tmp_path: Path) -> None:
    folder, raw = write_cifar(tmp_path)
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as writer:
        writer.add(folder, CIFAR10.folder)
    for source in (folder, tmp_path, archive):
        assert has_split(str(source))
        train, test = (load_images(str(source), size=32, split=split) for split in ("train", "test"))
        assert (len(train), len(test)) == (20, 4)
        assert train.class_names[3] == "class3"
        planes = raw.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        assert np.array_equal(train.pixels, planes[:20])
        assert np.array_equal(test.pixels, planes[20:])
    assert load_images(str(folder), size=16, split="test").pixels.shape == (4, 16, 16, 3)


class Evil:
    """Pickles as a call of `open`, which would make the file named."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": b"x", b"labels": [1]}),
        pickle.dumps({b"data": np.zeros((4, 3072), np.float64), b"labels": [0] * 4}, protocol=2),
        pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [0, 1, 2, 10]}, protocol=2),
        pickle.dumps({b"data": np.zeros((4, 3071), np.uint8), b"labels": [0] * 4}, protocol=2),
        pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [0] * 5}, protocol=2),
    ],
)
def test_a_damaged_cifar_batch_is_said_in_one_line(tmp_path: Path, content: bytes) -> None:
    folder, _ = write_cifar(tmp_path)
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(InvalidArgumentError, match="data_batch_3") as caught:
        load_images(str(folder), size=32)
    assert "\n" not in str(caught.value)


def test_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    folder, _ = write_cifar(tmp_path)
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": Evil(tmp_path / "owned")}, protocol=2))
    with pytest.raises(InvalidArgumentError, match="which no image needs"):
        load_images(str(folder), size=32)
    assert not (tmp_path / "owned").exists()


def test_a_missing_cifar_file_is_named(tmp_path: Path) -> None:
    folder, _ = write_cifar(tmp_path)
    (folder / "data_batch_5").unlink()
    with pytest.raises(NotFoundError, match="data_batch_5"):
        load_images(str(folder), size=32, split="train")
    assert len(load_images(str(folder), size=32, split="test")) == 4


def test_a_models_own_preprocess_is_what_prepares_the_images(tmp_path: Path) -> None:
    preprocess = Preprocess(12, 20, "crop", "bicubic", (0, 0, 0), crop_fraction=0.8)
    files = {"a/1.png": png(1, size=40), "b/2.png": png(2, size=40)}
    images = load_images(str(write_folder(tmp_path, files)), preprocess=preprocess)
    wanted = [load_pixels(data, preprocess) for _, data in sorted(files.items())]
    assert images.preprocess == preprocess
    assert np.array_equal(images.pixels, np.stack(wanted))
