"""One table of formats: the page for users has it, the decoder reads it, and missing extras are named."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagekin.encoder.decoding.decode import FORMATS, decode
from imagekin.encoder.decoding.formats import ALL_FORMATS, AVAILABLE_FORMATS, IMAGE_SUFFIXES, MISSING_EXTRAS, Format
from imagekin.errors import ImageError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "your-images.md"
EXTRAS = [one for one in ALL_FORMATS if one.module]


def test_the_page_has_the_formats_that_the_decoder_reads() -> None:
    page = PAGE.read_text(encoding="utf-8").partition("## Formats")[2].partition("## Layouts")[0]
    rows = re.findall(r"^\| (\w+) \| (\.[^|]+) \| (\w*) ?\|$", page, re.MULTILINE)
    assert [(name, tuple(suffixes.split()), extra) for name, suffixes, extra in rows] == [
        (one.name, one.suffixes, one.extra) for one in ALL_FORMATS
    ]
    assert {one.name for one in AVAILABLE_FORMATS} == FORMATS


def test_every_suffix_is_read_or_has_an_extra() -> None:
    assert {suffix for one in ALL_FORMATS for suffix in one.suffixes} == IMAGE_SUFFIXES | MISSING_EXTRAS.keys()
    assert not IMAGE_SUFFIXES & MISSING_EXTRAS.keys()


@pytest.mark.parametrize("one", EXTRAS, ids=lambda one: one.name)
def test_images_of_an_extra_are_read_upright(one: Format) -> None:
    if not one.is_available:
        pytest.skip(f"the extra {one.extra} is not installed")
    picture = Image.fromarray(np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((16, 16), np.uint8)))
    exif = Image.Exif()
    exif[0x112] = 6
    file = io.BytesIO()
    picture.convert("RGB").save(file, one.name, quality=95, exif=exif.tobytes())
    upright = picture.convert("RGB").transpose(Image.Transpose.ROTATE_270)
    assert np.abs(np.asarray(decode(file.getvalue()), int) - np.asarray(upright, int)).mean() < 3


def planar(bits: int) -> bytes:
    """Return an uncompressed TIFF file of 4×2 pixels in three separate planes."""
    samples = np.arange(24).astype("<u2" if bits == 16 else "u1")
    planes = [plane.tobytes() for plane in samples.reshape(3, 8)]
    size, more_at = len(planes[0]), 8 + 3 * len(planes[0]) + 2 + 12 * 10 + 4
    entries = [
        (256, 3, [4]), (257, 3, [2]), (258, 3, [bits] * 3), (259, 3, [1]), (262, 3, [2]),
        (273, 4, [8 + size * place for place in range(3)]), (277, 3, [3]), (278, 3, [2]),
        (279, 4, [size] * 3), (284, 3, [2]),
    ]  # fmt: skip
    head, more = len(entries).to_bytes(2, "little"), b""
    for tag, kind, numbers in entries:
        value = b"".join(number.to_bytes(2 if kind == 3 else 4, "little") for number in numbers)
        place = value.ljust(4, b"\0") if len(value) <= 4 else (more_at + len(more)).to_bytes(4, "little")
        more += value if len(value) > 4 else b""
        head += tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + len(numbers).to_bytes(4, "little") + place
    return b"II*\0" + (8 + 3 * size).to_bytes(4, "little") + b"".join(planes) + head + bytes(4) + more


def test_separate_planes_are_right_or_refused() -> None:
    pixels = np.asarray(decode(planar(8)))
    assert np.array_equal(pixels, np.arange(24, dtype=np.uint8).reshape(3, 2, 4).transpose(1, 2, 0))
    with pytest.raises(ImageError, match="separate planes of more than 8 bits"):
        decode(planar(16))
