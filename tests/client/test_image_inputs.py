"""Whatever form an image has, the server sees the same pixels."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagekin.client.image_inputs import as_images, image_bytes
from imagekin.encoder.decoding.decode import decode
from imagekin.errors import ImageError, InvalidArgumentError, NotFoundError

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)


def decoded(image: Any) -> np.ndarray:
    return np.asarray(decode(image_bytes(image)))


def test_files_and_bytes_travel_untouched(tmp_path: Path) -> None:
    path = tmp_path / "image.bin"
    path.write_bytes(b"whatever this is")
    for form in (path, str(path), b"whatever this is", bytearray(b"whatever this is"), memoryview(b"whatever this is")):
        assert image_bytes(form) == b"whatever this is"


def test_arrays_and_pillow_images_lose_nothing() -> None:
    np.testing.assert_array_equal(decoded(PIXELS), PIXELS)
    np.testing.assert_array_equal(decoded(PIXELS[::-1, ::2]), PIXELS[::-1, ::2])
    np.testing.assert_array_equal(decoded(Image.fromarray(PIXELS)), PIXELS)
    gray = PIXELS[:, :, 0]
    for form in (gray, gray[:, :, None], Image.fromarray(gray)):
        np.testing.assert_array_equal(decoded(form), np.repeat(gray[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(decoded(gray > 127)[:, :, 0], np.where(gray > 127, 255, 0))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16"])
def test_a_pillow_image_of_any_mode_can_be_sent(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert("L" if mode == "I;16" else mode) if mode != "I;16" else None
    if image is None:
        image = Image.fromarray(np.arange(63, dtype=np.uint16).reshape(9, 7) * 1000)
    assert decoded(image).shape == (9, 7, 3)


def test_a_pillow_image_keeps_the_orientation_of_its_file() -> None:
    photo = Image.fromarray(PIXELS)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    file = io.BytesIO()
    photo.save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(decoded(Image.open(io.BytesIO(file.getvalue()))), np.rot90(PIXELS, -1))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(3, np.uint8),
        3,
        None,
    ],
    ids=str,
)
def test_what_is_no_image_is_refused_with_what_to_pass(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="no image: pass"):
        image_bytes(wrong)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.png"):
        image_bytes(tmp_path / "none.png")
    with pytest.raises(ImageError, match="cannot be read"):
        image_bytes(tmp_path)


def test_one_image_is_told_from_a_series() -> None:
    for single in ("a.png", Path("a.png"), b"bytes", PIXELS, PIXELS[:, :, 0], Image.fromarray(PIXELS)):
        assert len(list(as_images(single))) == 1
    assert len(list(as_images(np.zeros((5, 9, 8, 3), np.uint8)))) == 5
    assert len(list(as_images(["a.png", "b.png"]))) == 2
