"""Decode image files for training, evaluation, indexing and serving, so that a file has the same pixels everywhere.

The bytes are not trusted: limits are checked before decoding, only listed formats are allowed, and every exception of
Pillow becomes an ImageError of one line without a path.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Imported to register their formats, so that opening a file never imports a module in a thread. Other formats are left
# out on purpose: EPS and WMF start other programs, TGA has no signature, ICO does not have all sizes in its header.
from PIL import (
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    Jpeg2KImagePlugin,  # noqa: F401
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from imagekin.encoder.decoding.bounds import BoundedReader, check_exif, check_file
from imagekin.encoder.decoding.colour import Colour, to_rgb
from imagekin.encoder.decoding.formats import FORMAT_NAMES, register_extras
from imagekin.encoder.decoding.pillow_warnings import quiet
from imagekin.encoder.metadata import Preprocess
from imagekin.errors import ImageError, InvalidArgumentError

FORMATS = FORMAT_NAMES
register_extras()
WHITE: Colour = (255, 255, 255)

# Codecs of Pillow that run in Python and hold the interpreter's lock.
_PYTHON_CODECS = frozenset({"bmp_rle", "ppm", "ppm_plain"})
_MAX_PYTHON_VALUES = 1_000_000
# A scan of a progressive JPEG has a few bytes, and takes a pass over the whole image.
_MAX_SCANNED_PIXELS = 4_000_000_000
_FREE_SCANS = 64
_START_OF_SCAN = b"\xff\xda"
_ORIENTATION = 0x0112
# A JPEG image is decoded at 1/2, 1/4 or 1/8 of its size if that is at least this many times the size needed. For 311
# photos and a trained encoder, the least cosine to the embedding at full size is 0.99997 with 2, and 0.9987 with 1.
_SCALED_MARGIN = 2
_PLANAR, _SEPARATE_PLANES = TiffImagePlugin.PLANAR_CONFIGURATION, 2
_TILE_SIZE = (322, 323)
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Upper bounds of an image file, checked before it is decoded.

    Attributes:
        max_bytes: length of the file.
        max_pixels: width times height, as stated in the file's header.
        max_side: width and height each, which bounds the memory for resizing a long, thin image.
        formats: names of the formats allowed, a subset of FORMATS.

    Raises:
        InvalidArgumentError: a limit is not positive, or a format is unknown.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 64_000_000
    max_side: int = 65_535
    formats: frozenset[str] = FORMATS

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.max_pixels, self.max_side) < 1:
            raise InvalidArgumentError("limits of images must be at least 1")
        if not self.formats or not self.formats <= FORMATS:
            raise InvalidArgumentError(f"image formats must be some of {', '.join(sorted(FORMATS))}")


DEFAULT_LIMITS = DecodeLimits()


def decode(
    data: bytes, limits: DecodeLimits = DEFAULT_LIMITS, background: Colour = WHITE, least: int | None = None
) -> Image.Image:
    """Decode an image file to an upright image of mode RGB in sRGB; of an animation, the first frame.

    Args:
        data: the file's bytes.
        limits: limits of the file.
        background: RGB colour behind transparent pixels, 0 to 255 each.
        least: sufficient length of both sides in pixels; a much larger JPEG image is decoded at a reduced size from its
            DCT coefficients, in a fraction of the time. None for full size.

    Raises:
        ImageError: it is no image, is damaged or truncated, has a format that is not allowed, or exceeds a limit.
    """
    _check_size(len(data), limits)
    check_file(data)
    with quiet(), _one_error("not an image, or of a format that is not supported"), BoundedReader(data) as file:
        image = Image.open(file, formats=sorted(limits.formats))
        with _one_error(f"{image.format} image is damaged, cut off or of an unsupported variety"):
            _check_header(image, data, limits)
            rawmode = _rawmode(image)
            if least is not None and image.format in ("JPEG", "MPO"):
                image.draft(None, (least, least))
            image.load()
            # The decoded size may differ from that in the header.
            _check_pixels(image.size, limits)
            upright = _upright(image)
            rgb = to_rgb(upright, background, rawmode)
    # The file's information, such as its orientation, is not valid for the converted pixels.
    rgb.info = {}
    return rgb


def fit(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Resize an image to a model's input, uint8 [H, W, 3].

    Args:
        image: mode RGB, upright, for example from `decode` or `from_array`.
        preprocess: the model's preprocessing.
    """
    size = (preprocess.width, preprocess.height)
    filter_ = _RESAMPLING[preprocess.interpolation]
    if preprocess.resize == "pad":
        scale = min(size[0] / image.width, size[1] / image.height)
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        canvas = Image.new("RGB", size, preprocess.background)
        canvas.paste(_resize(image, inner, filter_), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
        return np.array(canvas)
    if preprocess.resize == "crop":
        return np.array(_resize(image, size, filter_, _crop_box(image.size, size, preprocess.crop_fraction)))
    return np.array(_resize(image, size, filter_))


def load_pixels(data: bytes, preprocess: Preprocess, limits: DecodeLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Decode an image file and resize it to a model's input, uint8 [H, W, 3].

    Raises:
        ImageError: see `decode`.
    """
    return fit(decode(data, limits, preprocess.background, least_side(preprocess)), preprocess)


def least_side(preprocess: Preprocess) -> int:
    """Return the length of sides with which a decoded image has enough detail for the model's input."""
    kept = preprocess.crop_fraction if preprocess.resize == "crop" else 1.0
    return math.ceil(_SCALED_MARGIN * max(preprocess.height, preprocess.width) / kept)


def from_array(array: NDArray[np.uint8]) -> Image.Image:
    """Convert an array to an image of mode RGB.

    Args:
        array: uint8 [H, W, 3] in RGB, or [H, W] or [H, W, 1] in grey.

    Raises:
        InvalidArgumentError: another type or shape.
    """
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        raise InvalidArgumentError("an image array must be of uint8, 0 to 255")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or 0 in array.shape:
        raise InvalidArgumentError(f"an image array must be [H, W, 3] or [H, W], not {list(array.shape)}")
    image = Image.fromarray(np.ascontiguousarray(array))
    return image if image.mode == "RGB" else image.convert("RGB")


def _check_size(size: int, limits: DecodeLimits = DEFAULT_LIMITS) -> None:
    """Check the length of an image file in bytes, before it is read.

    Raises:
        ImageError: it is empty or exceeds the limit.
    """
    if not size:
        raise ImageError("image is empty")
    if size > limits.max_bytes:
        raise ImageError(f"image of {size:,} bytes is over the limit of {limits.max_bytes:,} bytes")


@contextmanager
def _one_error(message: str) -> Iterator[None]:
    """Convert exceptions of Pillow, which have no common base class, to ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("image has too many pixels") from None
    except MemoryError:
        raise ImageError("image needs more memory than there is") from None
    except UnidentifiedImageError:
        raise ImageError("not an image, or of a format that is not supported") from None
    except Exception:
        raise ImageError(message) from None


def _check_header(image: Image.Image, data: bytes, limits: DecodeLimits) -> None:
    """Check the cost of decoding that follows from the header."""
    _check_pixels(image.size, limits)
    pixels = image.width * image.height
    tiles = getattr(image, "tile", ())
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # A tile may be larger than the image, and is decoded completely.
        width, height = (image.tag_v2.get(tag) for tag in _TILE_SIZE)
        if isinstance(width, int) and isinstance(height, int):
            _check_pixels((width, height), limits)
        if image.tag_v2.get(_PLANAR) == _SEPARATE_PLANES and set(_bits(image)) - {1, 8} and len(image.getbands()) > 1:
            # Pillow reads each plane as if its samples had 8 bits.
            raise ImageError("TIFF image of separate planes of more than 8 bits is not supported; send it as PNG")
    codecs = {tile[0] for tile in tiles}
    if codecs & _PYTHON_CODECS and pixels * len(image.getbands()) > _MAX_PYTHON_VALUES:
        raise ImageError(f"{image.format} image of this kind has over {_MAX_PYTHON_VALUES:,} values; send it as PNG")
    if "jpeg" in codecs and (image.info.get("progressive") or image.info.get("progression")):
        # Other bytes may look like the marker, so up to _FREE_SCANS are always allowed, and more in small images.
        scans = data.count(_START_OF_SCAN)
        if scans > _FREE_SCANS and scans * pixels > _MAX_SCANNED_PIXELS:
            raise ImageError("JPEG image has too many scans")


def _bits(image: TiffImagePlugin.TiffImageFile) -> tuple[int, ...]:
    """Return the number of bits of each sample of a pixel."""
    bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    return bits if isinstance(bits, tuple) else (bits,)


def _check_pixels(size: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageError(f"image of {width}×{height} pixels is over the limit of {limits.max_pixels:,} pixels")
    if max(size) > limits.max_side:
        raise ImageError(f"image of {width}×{height} pixels is over the limit of {limits.max_side:,} a side")


def _rawmode(image: Image.Image) -> str:
    """Return Pillow's name of the file's pixel format, which is known only before decoding."""
    tiles = getattr(image, "tile", ())
    args = tiles[0][3] if tiles else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _upright(image: Image.Image) -> Image.Image:
    """Rotate an image by its EXIF or XMP orientation; an unreadable EXIF block is ignored."""
    block = image.info.get("exif")
    if isinstance(block, bytes):
        check_exif(block)
    try:
        method = _TRANSPOSE.get(image.getexif().get(_ORIENTATION, 1))
    except ImageError:
        raise
    except Exception:
        return image
    return image if method is None else image.transpose(method)


def _crop_box(source: tuple[int, int], size: tuple[int, int], fraction: float) -> tuple[float, float, float, float]:
    """Return the centred box of the source with the target's aspect ratio, to crop and resize in one step."""
    scale = min(source[0] / size[0], source[1] / size[1]) * fraction
    width, height = min(size[0] * scale, source[0]), min(size[1] * scale, source[1])
    left, top = (source[0] - width) / 2, (source[1] - height) / 2
    return left, top, min(left + width, source[0]), min(top + height, source[1])


def _resize(
    image: Image.Image,
    size: tuple[int, int],
    filter_: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    whole = box is None or box == (0, 0, *image.size)
    return image if whole and image.size == size else image.resize(size, filter_, box=box)
