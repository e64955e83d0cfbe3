"""The only code of the project that turns bytes into pixels (first version)."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from encoder.errors import ImageError
from encoder.metadata import Preprocess

FORMATS = frozenset({"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"})


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Limits."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 64_000_000
    formats: frozenset[str] = FORMATS


def decode(
    data: bytes, limits: DecodeLimits = DecodeLimits(), background: tuple[int, int, int] = (255, 255, 255)
) -> Image.Image:
    """Decode."""
    try:
        with Image.open(io.BytesIO(data), formats=sorted(limits.formats)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:
        raise ImageError("not an image") from error


def fit(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Fit."""
    image = ImageOps.fit(image, (preprocess.width, preprocess.height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def load_pixels(data: bytes, preprocess: Preprocess, limits: DecodeLimits = DecodeLimits()) -> NDArray[np.uint8]:
    """Load."""
    return fit(decode(data, limits, preprocess.background), preprocess)
