"""The cache holds what memory would, whatever happens while it is made, and notices when its source has changed."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.training.data.decoding import arrange
from imagekin.training.data.images import ImageSet, load_images
from imagekin.training.data.pixel_cache import PIXELS_FILE, ROWS_FILE, SET_FILE, CacheKey, DecodedFile, open_cached
from imagekin.training.data.storage import Storage, default_cache
from imagekin.training.loop.trainer import pretrain
from imagekin.training.presets import recommended
from imagekin.training.settings import TrainSettings
from tests.training.data.test_images import write_tar

ROOT = Path(__file__).resolve().parents[3]
SIZE = 256  # 21 images a block
LOAD = """
import sys
from pathlib import Path
from imagekin.training.data import decoding
from imagekin.training.data.images import load_images
from imagekin.training.data.storage import Storage
count, load = [0], decoding.load_pixels
def counted(*args):
    count[0] += 1
    return load(*args)
decoding.load_pixels = counted
images = load_images(sys.argv[1], size=int(sys.argv[3]), storage=Storage("cache", Path(sys.argv[2])))
print(count[0], len(images), int(images.pixels.sum(dtype="int64")))
"""


def write_photos(root: Path, count: int, side: int = 64) -> Path:
    """Write `count` JPEGs in three class folders whose names do not sort as their paths do."""
    draws = np.random.default_rng(0)
    for number in range(count):
        folder = root / ("cat", "cat-like", "dog")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draws.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((side, side)).save(folder / f"{number:03d}.jpg")
    return root


def start(source: Path, cache: Path, size: int = SIZE) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOAD, str(source), str(cache), str(size)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def figures(process: subprocess.Popen[str]) -> list[int]:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return [int(figure) for figure in out.split()]


def cached(source: Path, cache: Path, size: int = 8) -> ImageSet:
    return load_images(str(source), size=size, storage=Storage("cache", cache))


def assert_same(first: ImageSet, second: ImageSet) -> None:
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(first.labels, second.labels)
    assert (first.keys, first.class_names, first.failed) == (second.keys, second.class_names, second.failed)


def finished(cache: Path) -> Path:
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    assert {path.name for path in folder.iterdir()} == {PIXELS_FILE, SET_FILE}
    return folder


def test_the_cache_holds_what_memory_would(tmp_path: Path) -> None:
    source = write_photos(tmp_path / "pets", 20)
    (source / "dog" / "broken.jpg").write_bytes(b"no image")
    (source / "outside.jpg").write_bytes((source / "dog" / "002.jpg").read_bytes())
    wanted = load_images(str(source), size=8)
    assert len(wanted.failed) == 2
    for _ in range(2):
        found = cached(source, tmp_path / "cache")
        assert isinstance(found.pixels, np.memmap)
        assert_same(found, wanted)
    assert finished(tmp_path / "cache")


def test_an_archive_in_any_order_with_members_written_twice_is_cached_as_memory_has_it(tmp_path: Path) -> None:
    source = write_photos(tmp_path / "pets", 12)
    files = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*.jpg")}
    names = sorted(files, key=lambda name: name[::-1])
    archive = write_tar(tmp_path / "pets.tar", {name: files[name] for name in names})
    with_twice = write_tar(tmp_path / "again.tar", {f"./{name}": files[names[0]] for name in names[:3]})
    subprocess.run(["tar", "--concatenate", "-f", archive, with_twice], check=True)
    wanted = load_images(str(archive), size=8)
    assert len(wanted) == 12
    assert_same(cached(archive, tmp_path / "cache"), wanted)


def test_what_is_in_the_cache_is_not_decoded_again_until_the_source_changes(tmp_path: Path) -> None:
    source, cache = write_photos(tmp_path / "pets", 6), tmp_path / "cache"
    assert figures(start(source, cache, 8))[:2] == [6, 6]
    assert figures(start(source, cache, 8))[:2] == [0, 6]
    shutil.copy(source / "dog" / "002.jpg", source / "cat" / "new.jpg")
    assert figures(start(source, cache, 8))[:2] == [7, 7]
    assert finished(cache)  # what the source held before is gone
    assert figures(start(source, cache, 9))[:2] == [7, 7]
    assert figures(start(source, cache, 8))[:2] == [0, 7]


def test_a_build_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    source, cache = write_photos(tmp_path / "pets", 150, side=1500), tmp_path / "cache"
    process = start(source, cache)
    deadline = time.monotonic() + 60
    while not [path for path in cache.glob(f"*.part/{ROWS_FILE}") if path.read_bytes().count(b"\n") >= 2]:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not list(cache.glob(f"*/{SET_FILE}"))
    decoded, count, total = figures(start(source, cache))
    assert count == 150
    assert decoded <= 150 - 2 * 21
    assert total == int(load_images(str(source), size=SIZE).pixels.sum(dtype=np.int64))
    assert finished(cache)


SHAPE = (256, 256, 3)
KEY = CacheKey("source", "content")


def decoded(count: int, skip: int, stop: int) -> Iterator[DecodedFile]:
    """Yield `count` files, every seventh of them bad, without the first `skip`; the machine stops before `stop`."""
    for place in range(skip, count):
        if place == stop:
            raise KeyboardInterrupt
        pixels = np.full(SHAPE, place, np.uint8)
        yield (
            DecodedFile(f"{place:03d}.png", None, "bad") if place % 7 == 0 else DecodedFile(f"{place:03d}.png", pixels)
        )


def build(root: Path, stop: int = -1) -> tuple[int, NDArray[np.uint8]]:
    """Build a set of 100 files; return how many were decoded already, and the pixels."""
    skipped = []

    def decode(skip: int) -> Iterator[DecodedFile]:
        skipped.append(skip)
        return decoded(100, skip, stop)

    pixels, _ = open_cached(root, KEY, SHAPE, decode, lambda rows: arrange(rows, "pets"))
    return skipped[0] if skipped else 100, pixels


def overwrite(path: Path, place: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)


@pytest.mark.parametrize(
    ("harm", "kept"),
    [
        (lambda part: None, 63),
        (lambda part: os.truncate(part / PIXELS_FILE, 30 * 256 * 256 * 3), 21),
        (lambda part: overwrite(part / PIXELS_FILE, 20 * 256 * 256 * 3, b"harm"), 21),
        (lambda part: os.truncate(part / ROWS_FILE, (part / ROWS_FILE).stat().st_size - 1), 42),
        (lambda part: overwrite(part / ROWS_FILE, 20, b"harm"), 0),
        (lambda part: (part / ROWS_FILE).unlink(), 0),
    ],
    ids=["nothing", "pixels cut off", "pixels changed", "journal cut off", "journal changed", "journal gone"],
)
def test_of_a_torn_build_only_whole_blocks_are_kept(tmp_path: Path, harm: Callable[[Path], None], kept: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, stop=70)
    harm(tmp_path / f"{KEY.name}.part")
    skipped, pixels = build(tmp_path)
    assert skipped == kept
    assert pixels[:, 3, 5, 1].tolist() == [place for place in range(100) if place % 7]
    assert finished(tmp_path)


@pytest.mark.parametrize("name", [PIXELS_FILE, SET_FILE])
@pytest.mark.parametrize("harm", ["changed", "cut off", "gone"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, name: str, harm: str) -> None:
    build(tmp_path)
    path = tmp_path / KEY.name / name
    if harm == "changed":
        overwrite(path, path.stat().st_size - 5, b"har")
    elif harm == "cut off":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.unlink()
    skipped, pixels = build(tmp_path)
    assert skipped == 0
    assert len(pixels) == 85
    assert build(tmp_path)[0] == 100


def test_two_processes_make_one_cache_once(tmp_path: Path) -> None:
    source, cache = write_photos(tmp_path / "pets", 60, side=600), tmp_path / "cache"
    processes = [start(source, cache) for _ in range(2)]
    (first, *one), (second, *other) = (figures(process) for process in processes)
    assert sorted((first, second)) == [0, 60]
    assert one == other
    assert finished(cache)


def test_auto_goes_to_the_cache_when_memory_is_too_small_and_stays_there(tmp_path: Path) -> None:
    source = write_photos(tmp_path / "pets", 20)
    wanted = load_images(str(source), size=8)
    for budget, mapped in ((21 * 192, False), (5 * 192, True), (21 * 192, True)):
        storage = Storage("auto", tmp_path / "cache", budget)
        found = load_images(str(source), size=8, storage=storage)
        assert isinstance(found.pixels, np.memmap) == mapped
        assert_same(found, wanted)


@pytest.mark.usefixtures("unexported")
def test_training_from_the_cache_gives_the_weights_that_memory_gives(tmp_path: Path) -> None:
    source = write_photos(tmp_path / "pets", 24)
    weights = []
    for place in ("device", "cache"):
        base = recommended(str(source), tmp_path / place)
        run = dataclasses.replace(base, image_size=16, epochs=2, batch_size=12, threads=1, rotations_as_classes=True)
        settings = dataclasses.replace(run, data_on=place, cache_dir=tmp_path / "cache")
        assert TrainSettings.from_dict(settings.to_dict()) == settings
        pretrain(settings)
        weights.append(torch.load(tmp_path / place / "checkpoint.pt", weights_only=True)["encoder"])
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_cannot_be_a_set_is_said_and_what_cannot_be_written_too(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InvalidArgumentError, match="it holds none"):
        cached(empty, tmp_path / "cache")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FailedPreconditionError, match="--cache-dir") as caught:
        cached(write_photos(tmp_path / "pets", 3), tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_the_cache_lies_where_the_desktop_standard_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/imagekin/pixels")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative is to be ignored")
    assert default_cache() == Path.home() / ".cache" / "imagekin" / "pixels"
