"""A run remembers its images by name, content and class, and names what has changed."""

from pathlib import Path

import numpy as np
import pytest

from imagekin.encoder.metadata import Preprocess
from imagekin.training.data.identity import DATA_FILE, Identity, trained_digests
from imagekin.training.data.images import ImageSet

BEFORE = Identity((("a/1", "11", "a"), ("a/2", "22", "a"), ("b/1", "33", "b"), ("c/1", "44", "c")))


@pytest.mark.parametrize(
    ("images", "named"),
    [
        (BEFORE.images, ()),
        (BEFORE.images[::-1], ()),
        (BEFORE.images[:3], ("class c is gone", "1 image gone (c/1)")),
        ((*BEFORE.images, ("c/2", "55", "c")), ("1 image new (c/2)",)),
        (
            (*BEFORE.images[:3], ("z/1", "44", "z")),
            ("class c is gone", "class z is new", "1 image renamed (c/1 to z/1)"),
        ),
        ((*BEFORE.images[:3], ("c/1", "66", "c")), ("1 image changed (c/1)",)),
        ((("a/1", "11", "b"), *BEFORE.images[1:]), ("1 image relabelled (a/1 from a to b)",)),
        ((), ("classes a, b, c are gone", "4 images gone (a/1, a/2, b/1, …)")),
    ],
)
def test_differences_are_named(images: tuple[tuple[str, str, str | None], ...], named: tuple[str, ...]) -> None:
    now = Identity(tuple(images))
    assert BEFORE.differences(now) == named
    assert (BEFORE.id == now.id) == (not named)


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    odd = Identity((("\udcff\n\t文", "00", None), ("b", "11", "ü")))
    odd.write(tmp_path)
    first = (tmp_path / DATA_FILE).read_bytes()
    assert Identity.read(tmp_path) == odd
    odd.write(tmp_path)
    assert (tmp_path / DATA_FILE).read_bytes() == first
    assert trained_digests(tmp_path / "model.onnx") == {"00", "11"}


@pytest.mark.parametrize("damage", [b"", b"no gzip", b"\x1f\x8b\x08"])
def test_a_damaged_record_is_no_record(tmp_path: Path, damage: bytes) -> None:
    BEFORE.write(tmp_path)
    whole = (tmp_path / DATA_FILE).read_bytes()
    for bad in (damage, whole[: len(whole) // 2], whole[:-9] + b"\0" * 9):
        (tmp_path / DATA_FILE).write_bytes(bad)
        assert Identity.read(tmp_path) is None
    assert Identity.read(tmp_path / "nowhere") is None


def test_images_without_files_are_known_by_their_pixels() -> None:
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    images = ImageSet(pixels, np.array([0, -1]), ("a",), ("x", "y"), "drawn", Preprocess(4, 4))
    identity = Identity.of(images)
    assert [label for *_, label in identity.images] == ["a", None]
    other = pixels.copy()
    other[1, 0, 0, 0] += 1
    changed = ImageSet(other, images.labels, ("a",), ("x", "y"), "drawn", Preprocess(4, 4))
    assert identity.differences(Identity.of(changed)) == ("1 image changed (y)",)
