"""Any mode, depth, profile and transparency becomes the right 8-bit sRGB."""

import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from imagekin.encoder.decoding.decode import decode
from tests.encoder.decoding.pictures import encoded, picture, png_chunk, png_file, tiff_grey

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def grey_of(data: bytes) -> NDArray[np.uint8]:
    """Decode a grey image and return one channel, having checked that the three are the same."""
    pixels = np.asarray(decode(data))
    np.testing.assert_array_equal(pixels, np.repeat(pixels[..., :1], 3, axis=2))
    return pixels[..., 0]


def colour_of(data: bytes, background: tuple[int, int, int] = (255, 255, 255)) -> list[int]:
    """Decode and return the first pixel."""
    return [int(part) for part in np.asarray(decode(data, background=background))[0, 0]]


DEEP = {
    "png": encoded(GREY.astype(np.uint16) * 257),
    "tiff": encoded(GREY.astype(np.uint16) * 257, "TIFF"),
    "tiff big-endian": encoded(Image.fromarray(GREY.astype(">u2") * 257), "TIFF"),
    "tiff of 32 bits": tiff_grey(GREY.astype(np.uint32) << 24),
    "tiff of 32 bits holding 16": tiff_grey(GREY.astype(np.int32) * 257, sample_format=2),
    "tiff of 0 to 1": encoded(GREY.astype(np.float32) / 255, "TIFF"),
    "tiff of 0.0 to 255.0": encoded(GREY.astype(np.float32), "TIFF"),
    "tiff of 0.0 to 65535.0": encoded(GREY.astype(np.float32) * 257, "TIFF"),
    "pgm": b"P5 16 16 65535\n" + (GREY.astype(">u2") * 257).tobytes(),
    "plain pgm": b"P2 16 16 65535\n" + b" ".join(b"%d" % (int(v) * 257) for v in GREY.flat),
    "pfm": b"Pf 16 16 -1.0\n" + (GREY[::-1].astype("<f4") / 255).tobytes(),
    "jpeg 2000": encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "JPEG2000"),
}


@pytest.mark.parametrize("data", DEEP.values(), ids=DEEP)
def test_deep_grey_keeps_its_brightness(data: bytes) -> None:
    np.testing.assert_array_equal(grey_of(data), GREY)


def test_deep_colour_is_its_shallow_twin() -> None:
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in picture())
    np.testing.assert_array_equal(decode(png_file(37, 23, rows, bits=16, colour=2)), picture())


def test_fewer_than_16_bits_in_a_tiff_are_scaled_by_their_number() -> None:
    values = np.array([[0, 1 << 11, (1 << 12) - 1, 16]], np.uint16)
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.reshape(-1, 2).tolist())
    data = bytearray(tiff_grey(values))
    data[8 + 2 + 12 * 2 + 8] = 12
    data[-8:] = packed
    np.testing.assert_array_equal(grey_of(bytes(data)), [[0, 128, 255, 1]])


def test_signed_and_odd_numbers_are_clipped() -> None:
    signed = np.array([[-5, 0, 16384, 32767]], np.int16)
    np.testing.assert_array_equal(grey_of(tiff_grey(signed, sample_format=2)), [[0, 0, 128, 255]])
    odd = np.array([[np.nan, np.inf, -np.inf, -3, 0.5, 1]], np.float32)
    np.testing.assert_array_equal(grey_of(tiff_grey(odd, sample_format=3)), [[0, 0, 0, 0, 128, 255]])


@pytest.mark.parametrize("values", [GREY, GREY.astype(np.uint16) * 257], ids=["8 bits", "16 bits"])
def test_white_may_be_zero(values: NDArray[Any]) -> None:
    np.testing.assert_array_equal(grey_of(tiff_grey(values, photometric=0)), 255 - GREY)


def test_one_bit_is_black_and_white() -> None:
    for format_ in ("PNG", "TIFF", "GIF", "BMP", "PPM"):
        data = encoded(Image.fromarray(GREY > 127), format_)
        np.testing.assert_array_equal(grey_of(data), np.where(GREY > 127, 255, 0))


@pytest.mark.parametrize("format_", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(format_: str) -> None:
    for colour, wanted in [
        ((0, 255, 255, 0), (255, 0, 0)),
        ((0, 0, 0, 0), (255, 255, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
    ]:
        data = encoded(Image.new("CMYK", (16, 16), colour), format_)
        np.testing.assert_allclose(colour_of(data), wanted, atol=3)


def test_other_colour_spaces_keep_the_colour() -> None:
    image = Image.new("RGB", (16, 16), (200, 60, 30))
    for mode in ("YCbCr", "LAB"):
        np.testing.assert_allclose(colour_of(encoded(image.convert(mode), "TIFF")), (200, 60, 30), atol=3)


PALETTE = png_chunk(b"PLTE", bytes([9, 9, 9, 200, 10, 10]))
TRANSPARENT: dict[str, bytes] = {
    "rgba": encoded(Image.new("RGBA", (4, 4), (200, 10, 10, 0))),
    "la": encoded(Image.new("LA", (4, 4), (90, 0))),
    "tiff": encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "TIFF"),
    "webp": encoded(Image.new("RGBA", (4, 4), (200, 10, 10, 0)), "WEBP"),
    "avif": encoded(Image.new("RGBA", (4, 4), (200, 10, 10, 0)), "AVIF"),
    "gif": encoded(Image.new("P", (4, 4), 3), "GIF", transparency=3),
    "palette": png_file(4, 1, b"\0\1\1\1\1", bits=8, colour=3, extra=PALETTE + png_chunk(b"tRNS", b"\xff\0")),
    "palette with alpha": png_file(
        4, 1, b"\0\1\1\1\1", bits=8, colour=3, extra=PALETTE + png_chunk(b"tRNS", b"\x7f\0")
    ),
    "1 bit key": png_file(4, 1, b"\0\0", bits=1, colour=0, extra=png_chunk(b"tRNS", b"\0\0")),
    "2 bits key": png_file(4, 1, b"\0\xaa", bits=2, colour=0, extra=png_chunk(b"tRNS", b"\0\2")),
    "4 bits key": png_file(4, 1, b"\0\x55\x55", bits=4, colour=0, extra=png_chunk(b"tRNS", b"\0\5")),
    "8 bits key": png_file(4, 1, b"\0\x07\x07\x07\x07", bits=8, colour=0, extra=png_chunk(b"tRNS", b"\0\7")),
    "16 bits key": png_file(2, 1, b"\0\x12\x34\x12\x34", bits=16, colour=0, extra=png_chunk(b"tRNS", b"\x12\x34")),
    "rgb key": encoded(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)),
    "16 bits rgb key": png_file(
        1, 1, b"\0" + b"\x12\x34" * 3, bits=16, colour=2, extra=png_chunk(b"tRNS", b"\x12\x34" * 3)
    ),
}


@pytest.mark.parametrize("data", TRANSPARENT.values(), ids=TRANSPARENT)
@pytest.mark.parametrize("background", [(255, 255, 255), (10, 20, 30)])
def test_behind_transparent_pixels_lies_the_background(data: bytes, background: tuple[int, int, int]) -> None:
    np.testing.assert_array_equal(
        np.unique(np.asarray(decode(data, background=background)).reshape(-1, 3), axis=0), [background]
    )


def test_a_key_hides_its_own_value_only() -> None:
    deep = struct.pack(">3H", 0x1234, 0x1235, 0xFFFF)
    data = png_file(3, 1, b"\0" + deep, bits=16, colour=0, extra=png_chunk(b"tRNS", b"\x12\x34"))
    assert np.asarray(decode(data, background=(1, 2, 3))).tolist() == [[[1, 2, 3], [0x12] * 3, [255] * 3]]


def test_half_transparent_pixels_are_mixed_with_the_background() -> None:
    data = encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128)))
    np.testing.assert_allclose(colour_of(data, background=(0, 0, 255)), (128, 0, 127), atol=1)
    premultiplied = bytearray(encoded(Image.new("RGBA", (2, 2), (128, 0, 0, 128)), "TIFF"))
    # ExtraSamples: 2 is plain alpha, 1 is alpha that the colours are multiplied with already.
    at = premultiplied.index(struct.pack("<HHI", 338, 3, 1)) + 8
    premultiplied[at] = 1
    np.testing.assert_allclose(colour_of(bytes(premultiplied), background=(0, 0, 255)), (128, 0, 127), atol=1)


def profile_with_gamma(gamma: float) -> bytes:
    """Return sRGB's profile with another tone curve, which a test can compute by hand."""
    profile = bytearray(SRGB)
    count = struct.unpack_from(">I", profile, 128)[0]
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    for index in range(count):
        at = 132 + 12 * index
        if bytes(profile[at : at + 4]) in (b"rTRC", b"gTRC", b"bTRC"):
            struct.pack_into(">II", profile, at + 4, len(profile), len(curve))
    profile += curve
    struct.pack_into(">I", profile, 0, len(profile))
    return bytes(profile)


def srgb_of_linear(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "WEBP"])
def test_a_colour_profile_is_converted_to_srgb(format_: str) -> None:
    image = Image.merge("RGB", [Image.fromarray(GREY)] * 3)
    options: dict[str, Any] = {"lossless": True} if format_ == "WEBP" else {}
    data = encoded(image, format_, icc_profile=profile_with_gamma(1.0), **options)
    np.testing.assert_allclose(np.asarray(decode(data))[..., 1], srgb_of_linear(GREY / 255), atol=1.5)


def test_transparency_and_profile_go_together() -> None:
    profile = profile_with_gamma(1.0)
    half = encoded(Image.new("RGBA", (2, 2), (128, 128, 128, 0)), icc_profile=profile)
    assert colour_of(half, background=(9, 8, 7)) == [9, 8, 7]
    shown = encoded(Image.new("RGBA", (2, 2), (128, 128, 128, 255)), icc_profile=profile)
    np.testing.assert_allclose(colour_of(shown), [188] * 3, atol=1)
    palette = encoded(Image.new("RGB", (2, 2), (128, 128, 128)).quantize(2), icc_profile=profile)
    np.testing.assert_allclose(colour_of(palette), [188] * 3, atol=1)


@pytest.mark.parametrize("profile", [SRGB, b"broken", SRGB[:200], bytes(200), SRGB + bytes(5 * 2**20)], ids=len)
def test_srgb_and_broken_profiles_change_nothing(profile: bytes) -> None:
    np.testing.assert_array_equal(decode(encoded(picture(), "TIFF", icc_profile=profile)), picture())


def test_a_profile_of_another_colour_space_is_ignored() -> None:
    np.testing.assert_array_equal(grey_of(encoded(GREY, icc_profile=profile_with_gamma(1.0))), GREY)


def test_threads_may_share_a_profile() -> None:
    files = [encoded(picture(40 + n, 30), icc_profile=profile_with_gamma(1.0 + n % 5 / 10)) for n in range(40)]
    alone = [np.asarray(decode(data)).tobytes() for data in files]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda data: np.asarray(decode(data)).tobytes(), files)) == alone
