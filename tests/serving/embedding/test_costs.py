"""The cost of an image is guessed from its header, of whatever format it is, and never fails."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagekin.serving.embedding.costs import decoding_seconds

MOST = 64_000_000


def encoded(form: str, width: int, height: int, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
    ],
)
def test_the_cost_goes_by_the_pixels_that_the_header_says(form: str, options: dict[str, object]) -> None:
    small, large = encoded(form, 30, 20, **options), encoded(form, 300, 200, **options)
    assert decoding_seconds(large, MOST) == pytest.approx(60_000 * 22e-9)
    assert decoding_seconds(memoryview(large), MOST) == pytest.approx(100 * decoding_seconds(small, MOST))


def test_a_jpeg_image_costs_a_tenth_whatever_stands_before_its_frame() -> None:
    plain = encoded("JPEG", 300, 200)
    assert decoding_seconds(plain, MOST) == pytest.approx(60_000 * 2.5e-9)
    comment = b"\xff\xfe" + (20_002).to_bytes(2, "big") + b"c" * 20_000
    assert decoding_seconds(plain[:2] + comment + plain[2:], MOST) == decoding_seconds(plain, MOST)


def test_images_that_are_refused_and_pixels_that_are_decoded_cost_nothing() -> None:
    assert decoding_seconds(encoded("PNG", 300, 200), 59_999) == 0
    assert decoding_seconds(np.zeros((8, 8, 3), np.uint8), MOST) == 0


@given(st.binary(max_size=64), st.sampled_from([b"", b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"RIFF1234WEBPVP8 "]))
def test_any_bytes_have_a_cost(data: bytes, start: bytes) -> None:
    assert 0 <= decoding_seconds(start + data, MOST) <= MOST * 22e-9
