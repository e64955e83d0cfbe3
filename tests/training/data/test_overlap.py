"""Test images that are training images are found under other names, in other formats, and nearly equal if asked."""

import dataclasses
import io
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from imagekin.encoder.metadata import Preprocess
from imagekin.errors import InvalidArgumentError
from imagekin.training.data.images import ImageSet, load_images
from imagekin.training.data.overlap import find_near, without_overlap
from imagekin.training.data.storage import Storage

SIZE = 24


def picture(seed: int, side: int = 64) -> Image.Image:
    """Return a picture of soft patches of colour, other ones for each seed."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def write(folder: Path, pictures: dict[str, Image.Image]) -> Path:
    for name, image in pictures.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder


def drawn(seeds: list[int], name: str) -> ImageSet:
    """Return pictures in memory, of two classes, that come from no files."""
    pixels = np.stack([np.asarray(picture(seed, SIZE)) for seed in seeds])
    labels = np.arange(len(seeds)) % 2
    return ImageSet(pixels, labels, ("a", "b"), tuple(f"{name}/{seed}" for seed in seeds), name, Preprocess(SIZE, SIZE))


def test_copies_under_other_names_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = load_images(
        str(write(tmp_path / "train", {f"{c}/{n}.png": picture(n) for c in "ab" for n in range(3)})), size=SIZE
    )
    own = {f"a/new-{n}.png": picture(10 + n) for n in range(3)}
    test = load_images(str(write(tmp_path / "test", own | {"b/copy.png": picture(2)})), size=SIZE)
    kept, overlap = without_overlap(train, test)
    assert kept.keys == ("a/new-0.png", "a/new-1.png", "a/new-2.png")
    assert overlap.copies == (("b/copy.png", "a/2.png"),)
    assert (overlap.compared, overlap.left_out, overlap.near) == (4, 1, None)
    assert "1 of 4 test images are training images, too (b/copy.png is a/2.png)" in caplog.text
    assert np.array_equal(kept.pixels, test.pixels[:3])
    assert kept.digests == test.digests[:3]


def test_overlap_that_is_allowed_stays_and_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, test = drawn([1, 2, 3], "train"), drawn([3, 4], "test")
    kept, overlap = without_overlap(train, test, allowed=True)
    assert kept is test
    assert (len(overlap), overlap.left_out, overlap.counted) == (1, 0, True)
    assert "count them" in caplog.text


def test_nothing_but_copies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"3 of 3 .*test/1 is train/1.*--allow-overlap"):
        without_overlap(drawn([1, 2, 3], "train"), drawn([1, 2, 3], "test"))


def test_a_copy_in_another_format_or_with_other_metadata_is_a_copy(tmp_path: Path) -> None:
    train = load_images(str(write(tmp_path / "train", {"a/1.png": picture(1), "b/2.png": picture(2)})), size=SIZE)
    write(tmp_path / "test", {"a/1.tif": picture(1), "b/3.png": picture(3)})
    _kept, overlap = without_overlap(train, load_images(str(tmp_path / "test"), size=SIZE))
    assert overlap.copies == (("a/1.tif", "a/1.png"),)


def test_files_are_compared_where_pixels_cannot_be(tmp_path: Path) -> None:
    """Training images may be kept at another size than the one that is served (--crop-from)."""
    train = load_images(str(write(tmp_path / "train", {"a/1.png": picture(1), "b/2.png": picture(2)})), size=2 * SIZE)
    test = load_images(str(write(tmp_path / "test", {"a/1.png": picture(1), "b/3.png": picture(3)})), size=SIZE)
    assert without_overlap(train, test)[1].copies == (("a/1.png", "a/1.png"),)


def test_images_of_the_cache_are_compared_as_those_in_memory(tmp_path: Path) -> None:
    folder = write(tmp_path / "images", {f"{c}/{n}.png": picture(n + 9 * (c == "b")) for c in "ab" for n in range(3)})
    storage = Storage("cache", tmp_path / "cache")
    in_memory, first, again = (
        load_images(str(folder), size=SIZE, storage=where) for where in (Storage(), storage, storage)
    )
    assert in_memory.digests == first.digests == again.digests
    assert len(set(in_memory.digests)) == 6


def test_what_the_model_was_trained_on_counts_too() -> None:
    test = drawn([7, 8], "test")
    known = {test.pixel_digests()[1]}
    kept, overlap = without_overlap(drawn([1, 2], "train"), test, trained_on=known)
    assert kept.keys == ("test/7",)
    assert overlap.copies == (("test/8", "an image that the model was trained on"),)


def variants(image: Image.Image) -> dict[str, Image.Image]:
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=50)
    return {
        "compressed": Image.open(packed).convert("RGB"),
        "smaller": image.resize((40, 40)),
        "brighter": ImageEnhance.Brightness(image).enhance(1.1),
        "gray": image.convert("L").convert("RGB"),
    }


def test_near_duplicates_are_found_when_asked_for(tmp_path: Path) -> None:
    train = load_images(
        str(write(tmp_path / "train", {f"{c}/{n}.png": picture(n) for c in "ab" for n in range(4)})), size=SIZE
    )
    changed = {f"a/{name}.png": image for name, image in variants(picture(2)).items()}
    write(tmp_path / "test", changed | {f"b/{n}.png": picture(n) for n in range(20, 30)})
    test = load_images(str(tmp_path / "test"), size=SIZE)
    assert not without_overlap(train, test)[1]
    kept, overlap = without_overlap(train, test, near=True)
    assert overlap.near is not None
    assert {(one, other) for one, other, _ in overlap.near} == {(name, "a/2.png") for name in changed}
    assert overlap.left_out == len(changed)
    assert all(key.startswith("b/") for key in kept.keys)


def test_images_of_one_shade_are_near_nothing() -> None:
    flat = drawn([1, 2], "flat")
    flat.pixels[:] = 200
    assert find_near(flat, dataclasses.replace(flat, pixels=flat.pixels // 2)) == {}


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.lists(st.integers(0, 6), min_size=1, max_size=8))
def test_what_is_kept_and_what_is_left_out_are_all_of_the_test_images(train: list[int], test: list[int]) -> None:
    logging.getLogger("imagekin.training").disabled = True
    try:
        kept, overlap = without_overlap(drawn(train, "train"), drawn(test, "test"))
        assert kept.keys == tuple(f"test/{seed}" for seed in test if seed not in train)
        assert len(kept) + overlap.left_out == overlap.compared == len(test)
    except InvalidArgumentError:
        assert set(test) <= set(train)
    finally:
        logging.getLogger("imagekin.training").disabled = False
