"""Bytes from anybody: an image or one ImageError of one line, soon, and nothing else."""

import builtins
import gc
import inspect
import resource
import struct
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from imagekin.encoder.decoding.decode import FORMATS, DecodeLimits, _check_size, decode
from imagekin.encoder.decoding.pillow_warnings import quiet
from imagekin.errors import ImageError
from tests.data import shared_data
from tests.encoder.decoding.pictures import encoded, picture, png_chunk, png_file, tiff_file

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def corpus() -> dict[str, bytes]:
    """Return the files of hostile-images.tar by name."""
    with tarfile.open(shared_data("hostile-images.tar")) as tar:
        return {member.name: _read(tar, member) for member in tar if member.isfile()}


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    with file:
        return file.read()


def check_message(error: ImageError) -> str:
    message = str(error)
    assert message
    assert "\n" not in message
    assert "/" not in message
    assert "0x" not in message
    assert len(message) < 200
    # A chained exception would put Pillow's words into logs and traces.
    assert error.__suppress_context__ or error.__context__ is None
    return message


def outcome(data: bytes) -> Image.Image | str:
    """Decode; return the image, or the error's message having checked that a client may see it."""
    try:
        image = decode(data)
    except ImageError as error:
        return check_message(error)
    assert image.mode == "RGB"
    assert np.asarray(image).shape == (image.height, image.width, 3)
    return image


def test_every_hostile_file_is_an_image_or_an_image_error(corpus: dict[str, bytes]) -> None:
    images, slow = 0, []
    for name, data in corpus.items():
        start = time.process_time()
        images += not isinstance(outcome(data), str)
        if time.process_time() - start > 5:
            slow.append(name)
    gc.collect()  # an unclosed file would warn now, and warnings are errors
    assert len(corpus) > 600
    assert images > 400
    assert not slow


def test_threads_decode_hostile_files_as_one_does_alone(corpus: dict[str, bytes]) -> None:
    def digest(data: bytes) -> int | str:
        result = outcome(data)
        return result if isinstance(result, str) else zlib.crc32(result.tobytes())

    files = [data for data in corpus.values() if len(data) < 100_000]
    alone = [digest(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(digest, files)) == alone


def test_the_16_bit_image_is_not_white(corpus: dict[str, bytes]) -> None:
    for name in ("image-rs/png/16bpc/basi0g16.png", "pillow/hopper_16bit_plain.pgm", "libjpeg-turbo/monkey16.png"):
        pixels = np.asarray(decode(corpus[name]))
        assert 30 < pixels.mean() < 220, name
        assert pixels.std() > 30, name


def test_real_photos_are_turned_upright(corpus: dict[str, bytes]) -> None:
    def small(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        vector = np.asarray(decode(corpus[name]).resize((32, 32)), np.float64).ravel()
        centred = vector - vector.mean()
        return np.asarray(centred / np.linalg.norm(centred))

    upright = small("pillow/hopper.jpg")
    turned = [name for name in corpus if name.startswith("pillow/hopper_orientation_")]
    assert turned
    for name in turned:
        assert small(name) @ upright > 0.99, name
    landscapes = [small(f"exif-orientation/Landscape_{number}.jpg") for number in (1, 3, 5, 7)]
    # The photos show their own number; the rest is the same.
    assert min(one @ landscapes[0] for one in landscapes) > 0.9


def test_wrong_lengths_are_refused_before_anything_is_read() -> None:
    with pytest.raises(ImageError, match="empty"):
        decode(b"")
    limits = DecodeLimits(max_bytes=100)
    with pytest.raises(ImageError, match="image of 101 bytes is over the limit of 100 bytes"):
        decode(encoded(picture())[:101], limits)
    with pytest.raises(ImageError, match="over the limit"):
        _check_size(101, limits)
    _check_size(100, limits)


def test_too_many_pixels_are_refused_from_the_header() -> None:
    data = encoded(picture(40, 30))
    assert decode(data, DecodeLimits(max_pixels=1200)).size == (40, 30)
    with pytest.raises(ImageError, match="image of 40×30 pixels is over the limit of 1,199 pixels"):
        decode(data, DecodeLimits(max_pixels=1199))
    with pytest.raises(ImageError, match="image of 40×30 pixels is over the limit of 39 a side"):
        decode(data, DecodeLimits(max_side=39))


def bomb(side: int) -> bytes:
    """Return a PNG file of side² black pixels, some 200 times shorter than they are."""
    deflate = zlib.compressobj(1)
    band = bytes((1 + 3 * side) * 100)
    body = b"".join(deflate.compress(band) for _ in range(side // 100)) + deflate.flush()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", body) + png_chunk(b"IEND")


@pytest.mark.parametrize("side", [9_000, 13_000])
def test_a_bomb_is_refused_by_its_header_alone(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bomb(side)
    assert len(data) < 4 * MEBIBYTE
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # no pixel is decoded
    assert "over the limit" in str(outcome(data))


def gif(frame: tuple[int, int]) -> bytes:
    """Return a GIF file of 8×8 whose first frame claims another size."""
    head = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + b"\x21\xf9\x04\x09\0\0\0\0," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x44\x01\x00;"


def rle_bmp(width: int, height: int, body: bytes) -> bytes:
    size = 54 + 1024 + len(body)
    head = b"BM" + struct.pack("<IHHI", size, 0, 0, 54 + 1024)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0) + bytes(1024) + body


def many_scans(side: int, scans: int) -> bytes:
    """Return a progressive JPEG file that repeats its last scan."""
    data = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * scans + b"\xff\xd9"


def fake_jp2() -> bytes:
    """Return a JPEG 2000 file whose header says 8×8 and whose code stream says 500×500."""
    data = bytearray(encoded(Image.new("L", (500, 500)), "JPEG2000"))
    at = data.index(b"ihdr") + 4
    data[at : at + 8] = struct.pack(">II", 8, 8)
    return bytes(data)


def wide_webp() -> bytes:
    """Return a WebP file of 4×4 pixels whose header claims 16,383×10,900."""
    frames = [Image.new("RGBA", (4, 4), (255, 0, 0, alpha)) for alpha in (9, 99)]
    data = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    data[24:30] = (16_382).to_bytes(3, "little") + (10_899).to_bytes(3, "little")
    return bytes(data)


def avif_file(tags: list[tuple[int, int, int, int]], data: bytes) -> bytes:
    """Return an AVIF file whose EXIF block has these tags, and an orientation that the image itself contradicts.

    Pillow then writes the block anew while it opens the file, from each value of each tag.
    """
    turned, turned_later = (struct.pack("<HHI", tag, 3, 1) for tag in (0x0112, 0x0111))
    made = encoded(Image.new("RGB", (16, 16)), "AVIF", exif=tiff_file([(0x0111, 3, 1, 6), *tags], data))
    assert made.count(turned_later) == 1
    return made.replace(turned_later, turned)


TAGS = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 0), (279, 4, 1, 64)]
COSTLY = {
    "png, tiny chunks": png_file(8, 8, b"", bits=8, colour=0, extra=png_chunk(b"abCd") * (MEBIBYTE // 2)),
    "png, text bomb": png_file(
        8, 8, b"", bits=8, colour=0, extra=png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(MEBIBYTE))) * 200
    ),
    "png, profile bomb": png_file(
        8, 8, b"", bits=8, colour=0, extra=png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(64 * MEBIBYTE)))
    ),
    "png, one pixel wide": png_file(1, 10_000_000, b"", bits=8, colour=0),
    "jpeg, junk": b"\xff\xd8\xff" + bytes(8 * MEBIBYTE),
    "jpeg, tiny segments": b"\xff\xd8" + b"\xff\xe0\x00\x02" * (2 * MEBIBYTE),
    "jpeg, many scans": many_scans(7000, 2000),
    "ppm, long comment": b"P6 #" + b"x" * (8 * MEBIBYTE),
    "ppm, plain": b"P3 3000 3000 255\n" + b"1 " * MEBIBYTE,
    "ppm, plain, all there": b"P3 1400 1400 255\n" + b"1 " * (3 * 1400 * 1400),
    "ppm, odd depth": b"P6 3000 3000 254\n" + bytes(MEBIBYTE),
    "bmp, rle": rle_bmp(8000, 8000, b"\x01\x01\0\0" * 8000),
    "gif, large frame": gif((13_000, 13_000)),
    "gif, tiny blocks": gif((8, 8))[:19] + b"\x21\xfe" + b"\x01a" * (2 * MEBIBYTE),
    "jpeg 2000, two sizes": fake_jp2(),
    "webp, large canvas": wide_webp(),
    "tiff, many strips": tiff_file(
        [*TAGS[:5], (273, 4, MEBIBYTE, 110), (278, 4, 1, 1), (279, 4, 1, 8)], struct.pack("<I", 110) * MEBIBYTE
    ),
    "tiff, many numbers": tiff_file([*TAGS, (282, 5, MEBIBYTE, 130)], bytes(8 * MEBIBYTE + 200)),
    "tiff, many numbers in its exif": tiff_file(
        [*TAGS, (0x8769, 4, 1, 200)],
        bytes(200 - 110) + struct.pack("<HHHII", 1, 33434, 5, MEBIBYTE, 230) + bytes(8 * MEBIBYTE + 200),
    ),
    "png, many numbers in its exif": png_file(
        8,
        8,
        bytes(8 * 9),
        bits=8,
        colour=0,
        extra=png_chunk(b"eXIf", tiff_file([(274, 5, MEBIBYTE, 26)], bytes(8 * MEBIBYTE))),
    ),
    "jpeg, many exif blocks": b"\xff\xd8"
    + (b"\xff\xe1" + struct.pack(">H", 65_000) + b"Exif\0\0" + bytes(64_992)) * 100,
    "avif, many numbers in its exif": avif_file([(0xC000, 5, 2 * MEBIBYTE, 38)], bytes(16 * MEBIBYTE)),
    "avif, many numbers in many tags": avif_file(
        [(0x1000 + number, 5, 150_000, 146 + 1_200_000 * number) for number in range(10)], bytes(12_000_000)
    ),
    "tiff, wide tile": tiff_file([*TAGS[:5], (322, 4, 1, 30_000), (323, 4, 1, 30_000), (324, 4, 1, 0)], bytes(64)),
}


@pytest.mark.parametrize("data", COSTLY.values(), ids=COSTLY)
def test_files_made_to_cost_are_refused_soon(data: bytes) -> None:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    assert isinstance(outcome(data), str)
    assert time.process_time() - start < 10  # unbounded they take seconds to hours
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 600 * 1024


def test_what_costs_little_of_the_same_kinds_is_served() -> None:
    assert not isinstance(outcome(b"P3 500 500 255\n" + b"1 " * 750_000), str)
    turned = outcome(avif_file([(0xC000, 5, 1000, 38)], bytes(8000)))
    assert not isinstance(turned, str)
    # What looks like the beginning of an EXIF block, and is none.
    picture_of_noise = encoded(picture(), "AVIF") + b"II*\0" * 60
    assert not isinstance(outcome(picture_of_noise), str)


def test_overlapping_tiff_tags_do_not_multiply() -> None:
    """20,000 tags that each point to the same mebibyte would be 20 GiB."""
    tags = [(30_000 + number, 1, MEBIBYTE, 8) for number in range(20_000)]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome(tiff_file([*TAGS, *tags], bytes(MEBIBYTE)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300 * 1024


def test_a_progressive_jpeg_of_many_scans_is_served_when_it_is_small() -> None:
    assert not isinstance(outcome(many_scans(64, 100)), str)
    # What looks like a marker may be a film appended to a photo.
    assert not isinstance(outcome(many_scans(1000, 0) + b"\xff\xda" * 1000), str)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    st.floats(0, 1),
)
def test_damaged_files_of_every_format(format_: str, changes: list[tuple[float, int]], kept: float) -> None:
    data = bytearray(encoded(picture(), format_))
    for at, value in changes:
        data[int(at * len(data))] = value
    outcome(bytes(data[: int(kept * len(data))]) if kept < 0.8 else bytes(data))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", b"GIF89a", b"BM", b"P6 ", b"II*\0", b"RIFF"]))
def test_random_bytes(data: bytes, start: bytes) -> None:
    outcome(start + data)


@pytest.mark.parametrize("format_", ["ICO", "TGA", "EPS", "PDF", "PCX", "SGI", "DDS", "ICNS"])
def test_formats_that_are_not_allowed_are_refused(format_: str) -> None:
    size = (16, 16)
    assert outcome(encoded(Image.new("RGB", size), format_)) == "not an image, or of a format that is not supported"


def test_the_allow_list_can_be_shorter() -> None:
    limits = DecodeLimits(formats=frozenset({"PNG"}))
    assert decode(encoded(picture()), limits).size == (37, 23)
    with pytest.raises(ImageError, match="not supported"):
        decode(encoded(picture(), "JPEG"), limits)


def pillow_exceptions() -> list[type[Exception]]:
    """Return every exception class that Pillow's modules know, and every built-in one: plugins raise most of those."""
    modules = [module for name, module in sys.modules.items() if name == "PIL" or name.startswith("PIL.")]
    found: set[type[Exception]] = set()
    for module in [*modules, builtins]:
        for value in vars(module).values():
            if inspect.isclass(value) and issubclass(value, Exception) and not issubclass(value, ExceptionGroup):
                found.add(value)
    return sorted(found - {ImageError}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", pillow_exceptions())
@pytest.mark.parametrize("step", ["open", "load", "getexif", "convert"])
def test_whatever_pillow_raises_is_an_image_error(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], step: str
) -> None:
    def raise_it(*_args: object, **_options: object) -> None:
        if issubclass(kind, UnicodeDecodeError):
            raise kind("utf-8", b"/secret/path", 0, 1, "bad\nline")
        if issubclass(kind, UnicodeEncodeError):
            raise kind("utf-8", "/secret/path", 0, 1, "bad\nline")
        if issubclass(kind, UnicodeTranslateError):
            raise kind("/secret/path", 0, 1, "bad\nline")
        raise kind("two\nlines of /secret/path")

    owner = {"open": Image, "load": ImageFile.ImageFile, "getexif": Image.Image, "convert": Image.Image}[step]
    monkeypatch.setattr(owner, step, raise_it)
    data = encoded(np.asarray(picture()[..., 0]), "BMP")
    monkeypatch.setattr(owner, step, raise_it)
    result = outcome(data)
    # An unreadable EXIF block costs an image its orientation, not its place.
    assert isinstance(result, str) == (step != "getexif")


def test_pillows_warnings_stay_inside(corpus: dict[str, bytes]) -> None:
    """Also when somebody puts a stricter filter in front later, and in this thread only."""
    loud = [corpus[name] for name in corpus if name.endswith((".tif", ".tiff", ".jpg"))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in loud:
            outcome(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for data in loud:
            outcome(data)
    assert caught == []


def test_other_threads_and_other_modules_still_warn() -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with quiet():
            entered.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait(10)
    try:
        with pytest.raises(Image.DecompressionBombWarning):
            Image._decompression_bomb_check((10_000, 10_000))
        with quiet():
            Image._decompression_bomb_check((10_000, 10_000))
            with pytest.raises(UserWarning, match="mine"):
                warnings.warn("mine", stacklevel=1)
    finally:
        leave.set()
        holder.join()
    with pytest.raises(Image.DecompressionBombWarning):
        Image._decompression_bomb_check((10_000, 10_000))


def test_pillows_own_settings_stay_as_they_are() -> None:
    before = Image.MAX_IMAGE_PIXELS
    outcome(encoded(picture()))
    outcome(b"junk")
    assert before == Image.MAX_IMAGE_PIXELS
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_decoding_imports_nothing() -> None:
    """A thread that imports holds up the others, and a format that is loaded late is one that nobody counted."""
    code = """
import sys
from io import BytesIO
from imagekin.encoder.decoding.decode import FORMATS, decode
from PIL import Image
before = set(sys.modules)
for name in FORMATS:
    file = BytesIO()
    Image.new("RGB", (4, 4)).save(file, name)
    decode(file.getvalue())
print(sorted(name for name in set(sys.modules) - before if name.startswith("PIL.")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_file_is_read_from_memory_only() -> None:
    """Bytes that spell a path are bytes."""
    for data in (b"/etc/hostname", b"pyproject.toml"):
        assert outcome(data) == "not an image, or of a format that is not supported"
