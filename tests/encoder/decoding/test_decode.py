"""Bytes to pixels: upright, of one size and type, and the same pixels for ever."""

import hashlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagekin.encoder.decoding.decode import DecodeLimits, decode, fit, from_array, load_pixels
from imagekin.encoder.metadata import Preprocess
from imagekin.errors import InvalidArgumentError
from tests.encoder.decoding.pictures import encoded, picture

TURNED = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, -1),
}
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"]
FORMATS: dict[str, list[str]] = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16"],
    "JPEG": ["L", "RGB", "CMYK", "YCbCr"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["1", "L", "P", "RGB", "RGBA"],
    "BMP": ["1", "L", "P", "RGB"],
    "PPM": ["1", "L", "RGB", "I", "F"],
    "JPEG2000": ["L", "LA", "RGB", "RGBA", "I;16"],
    "AVIF": ["RGB", "RGBA"],
}
PREPROCESS = st.builds(
    Preprocess,
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    resize=st.sampled_from(["squash", "crop", "pad"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos", "box"]),
    crop_fraction=st.floats(0.05, 1),
)


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


@settings(deadline=None, max_examples=120)
@given(
    st.sampled_from([(format_, mode) for format_, modes in FORMATS.items() for mode in modes]),
    st.integers(1, 40),
    st.integers(1, 40),
    PREPROCESS,
)
def test_every_format_mode_and_size_becomes_pixels(
    kind: tuple[str, str], width: int, height: int, preprocess: Preprocess
) -> None:
    source = Image.fromarray(picture(width, height))
    image = source.convert("L").convert("I").convert("I;16") if kind[1] == "I;16" else source.convert(kind[1])
    data = encoded(image, kind[0])
    decoded = decode(data)
    assert (decoded.mode, decoded.size) == ("RGB", (width, height))
    pixels = load_pixels(data, preprocess)
    assert pixels.shape == (preprocess.height, preprocess.width, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable


@pytest.mark.parametrize("format_", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_formats_keep_every_pixel(format_: str) -> None:
    np.testing.assert_array_equal(decode(encoded(picture(), format_)), picture())


@pytest.mark.parametrize("format_", ["JPEG", "WEBP", "JPEG2000", "AVIF"])
def test_lossy_formats_stay_close(format_: str) -> None:
    smooth = np.array(Image.fromarray(picture()[..., [0, 1, 0]]).resize((64, 48)))
    assert np.abs(np.asarray(decode(encoded(smooth, format_, quality=95)), int) - smooth).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["PNG", "TIFF", "WEBP"])
def test_a_turned_image_is_its_upright_twin(format_: str, orientation: int) -> None:
    stored = np.ascontiguousarray(TURNED[orientation](picture()))
    options: dict[str, Any] = {"lossless": True} if format_ == "WEBP" else {}
    upright = decode(encoded(stored, format_, exif=exif(orientation), **options))
    np.testing.assert_array_equal(upright, picture())
    # Whoever looks at the result again must not turn it a second time.
    assert upright.getexif().get(0x0112, 1) == 1


def test_a_turned_jpeg_is_its_upright_twin() -> None:
    stored = np.ascontiguousarray(TURNED[6](picture(64, 48)))
    upright = np.asarray(decode(encoded(stored, "JPEG", quality=95, exif=exif(6))), int)
    assert np.abs(upright - np.asarray(decode(encoded(picture(64, 48), "JPEG", quality=95)), int)).mean() < 8


@pytest.mark.parametrize(
    "block", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", exif(99), exif(0)]
)
def test_an_unreadable_orientation_is_ignored(block: bytes) -> None:
    np.testing.assert_array_equal(decode(encoded(picture(), exif=block)), picture())


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_counts(format_: str) -> None:
    first, second = (Image.new("RGB", (16, 12), colour) for colour in ("red", "blue"))
    data = encoded(first, format_, save_all=True, append_images=[second])
    colour = np.asarray(decode(data)).reshape(-1, 3).mean(0)
    np.testing.assert_allclose(colour, (255, 0, 0), atol=3)


# Changing any of these changes what every stored embedding was made from. Do it only together with the format of the
# artifact, never to make a test pass.
GOLDEN = {
    ("squash", "nearest"): "da7813fb13958ad0",
    ("squash", "bilinear"): "223cff9e7d461503",
    ("squash", "bicubic"): "db35d4f4f670d4ff",
    ("squash", "lanczos"): "e2dd21d43ac3a4d2",
    ("squash", "box"): "95b0f4b052bb23b2",
    ("crop", "nearest"): "36001cf23cb4208f",
    ("crop", "bilinear"): "00a114c6db7d9ae4",
    ("crop", "bicubic"): "1f07e0fa7d740af1",
    ("pad", "bilinear"): "72806b32121e7a61",
    ("pad", "lanczos"): "0166adde453bfdd6",
}


@pytest.mark.parametrize(("rule", "digest"), GOLDEN.items(), ids="-".join)
def test_pixels_never_drift(rule: tuple[Any, Any], digest: str) -> None:
    pixels = load_pixels(encoded(picture()), Preprocess(9, 8, *rule, background=(10, 20, 30)))
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == digest


def test_a_cropped_and_scaled_pixel_is_the_mean_of_its_area() -> None:
    """The one golden value that a reader can check by hand: 8×4 to 2×2 keeps the middle 4×4."""
    source = np.zeros((4, 8, 3), np.uint8)
    source[:, :2] = 200
    source[:2, 2:4] = 100
    source[2:, 4:6] = 60
    source[:, 6:] = 200
    pixels = load_pixels(encoded(source), Preprocess(2, 2, "crop", "box"))
    assert pixels[..., 0].tolist() == [[100, 0], [0, 60]]


def test_crop_fraction_keeps_the_middle_of_the_crop() -> None:
    source = np.full((8, 8, 3), 200, np.uint8)
    source[2:6, 2:6] = 50
    assert (load_pixels(encoded(source), Preprocess(4, 4, "crop", "box", crop_fraction=0.5)) == 50).all()


def test_padding_centres_the_image_on_the_background() -> None:
    pixels = load_pixels(encoded(np.full((4, 8, 3), 7, np.uint8)), Preprocess(8, 8, "pad", background=(1, 2, 3)))
    assert (pixels[2:6] == 7).all()
    assert (pixels[[0, 1, 6, 7]] == (1, 2, 3)).all()


def test_cropping_like_torchvision_gives_its_pixels() -> None:
    """Resize the shortest side, then cut the centre: one resize with a box does both, up to rounding."""
    source = Image.fromarray(picture(120, 90))
    two_steps = source.resize((64, 48), Image.Resampling.BILINEAR).crop((16, 8, 48, 40))
    one_step = fit(source, Preprocess(32, 32, "crop", "bilinear", crop_fraction=32 / 48))
    assert np.abs(one_step.astype(int) - np.asarray(two_steps, int)).max() <= 1


@settings(deadline=None, max_examples=40)
@given(PREPROCESS, st.integers(1, 60), st.integers(1, 60), st.integers(0, 255))
def test_a_plain_image_stays_plain(preprocess: Preprocess, width: int, height: int, level: int) -> None:
    image = Image.new("RGB", (width, height), (level, 255 - level, 7))
    pixels = fit(image, preprocess).reshape(-1, 3)
    kept = pixels[(pixels != preprocess.background).any(1)] if preprocess.resize == "pad" else pixels
    assert (kept == (level, 255 - level, 7)).all()


@settings(deadline=None, max_examples=40)
@given(PREPROCESS, st.integers(1, 60), st.integers(1, 60))
def test_file_array_and_image_give_the_same_pixels(preprocess: Preprocess, width: int, height: int) -> None:
    array = picture(width, height)
    from_file = load_pixels(encoded(array), preprocess)
    np.testing.assert_array_equal(from_file, fit(from_array(array), preprocess))
    np.testing.assert_array_equal(from_file, fit(Image.fromarray(array), preprocess))
    turned = encoded(np.ascontiguousarray(TURNED[6](array)), exif=exif(6))
    np.testing.assert_array_equal(from_file, load_pixels(turned, preprocess))


def test_arrays_may_be_grey_and_strided() -> None:
    grey = picture()[..., 0]
    np.testing.assert_array_equal(from_array(grey), np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(from_array(grey[..., None]), from_array(grey))
    np.testing.assert_array_equal(from_array(picture()[::2, ::-1]), picture()[::2, ::-1])


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros(4, np.uint8), [[0]]],
    ids=["float", "four channels", "empty", "flat", "list"],
)
def test_other_arrays_are_refused(array: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="image array must be"):
        from_array(array)


def test_limits_must_make_sense() -> None:
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        DecodeLimits(max_bytes=0)
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        DecodeLimits(max_pixels=0)
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        DecodeLimits(max_side=0)
    for formats in (frozenset[str](), frozenset({"PNG", "EPS"})):
        with pytest.raises(InvalidArgumentError, match="must be some of AVIF, BMP"):
            DecodeLimits(formats=formats)


def test_the_result_does_not_hold_on_to_the_file() -> None:
    data = encoded(picture(), "JPEG", exif=exif(3))
    image = decode(data)
    file = BytesIO()
    image.save(file, "PNG")
    assert image.info == {}
    np.testing.assert_array_equal(decode(file.getvalue()), image)
