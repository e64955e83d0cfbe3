"""Guess how long an image takes to decode from its first bytes, before it is queued.

The size of the common formats stands at a fixed place or behind a few segments. A wrong guess costs its caller a turn
or gains it one; what is decoded is decided by the real header, see `imagekin.encoder.decoding`.
"""

import numpy as np

from imagekin.serving.embedding.image_jobs import Source

# Seconds for a pixel, measured with photos of 8 megapixels on one core: JPEG images are decoded at a reduced size.
_JPEG_SECONDS = 2.5e-9
_PIXEL_SECONDS = 22e-9
# Of formats whose header is not read here, a byte stands for so many pixels.
_PIXELS_PER_BYTE = 4
_MOST_SEGMENTS = 64
_STARTS_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def decoding_seconds(image: Source, max_pixels: int) -> float:
    """Guess the seconds that decoding an image takes on one core.

    Args:
        image: its file, or its pixels, which need no decoding.
        max_pixels: images of more pixels are refused, which takes no time.
    """
    if isinstance(image, np.ndarray):
        return 0.0
    is_jpeg = image[:2] == b"\xff\xd8"
    found = _jpeg_pixels(image) if is_jpeg else _pixels(image)
    pixels = min(_PIXELS_PER_BYTE * len(image), max_pixels) if found is None else found
    if pixels > max_pixels:
        return 0.0
    return pixels * (_JPEG_SECONDS if is_jpeg else _PIXEL_SECONDS)


def _pixels(image: bytes | memoryview) -> int | None:
    """Read the number of pixels from the header of a PNG, GIF, BMP or WebP file; None for other files."""
    if image[:4] == b"\x89PNG":
        return _number(image, 16, 4, "big") * _number(image, 20, 4, "big")
    if image[:4] == b"GIF8":
        return _number(image, 6, 2) * _number(image, 8, 2)
    if image[:2] == b"BM":
        return _number(image, 18, 4) * _number(image, 22, 4)
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return _webp_pixels(image)
    return None


def _webp_pixels(image: bytes | memoryview) -> int | None:
    """Read the number of pixels of a WebP file (RFC 9649)."""
    kind = bytes(image[12:16])
    if kind == b"VP8X":
        return (1 + _number(image, 24, 3)) * (1 + _number(image, 27, 3))
    if kind == b"VP8L":
        bits = _number(image, 21, 4)
        return (1 + (bits & 0x3FFF)) * (1 + (bits >> 14 & 0x3FFF))
    if kind == b"VP8 ":
        return (_number(image, 26, 2) & 0x3FFF) * (_number(image, 28, 2) & 0x3FFF)
    return None


def _jpeg_pixels(image: bytes | memoryview) -> int | None:
    """Read the number of pixels of a JPEG file from its frame's header, None where it is not found soon."""
    at = 2
    for _ in range(_MOST_SEGMENTS):
        if at + 9 > len(image) or image[at] != 0xFF:
            return None
        if image[at + 1] in _STARTS_OF_FRAME:
            return _number(image, at + 5, 2, "big") * _number(image, at + 7, 2, "big")
        at += 2 + _number(image, at + 2, 2, "big")
    return None


def _number(image: bytes | memoryview, at: int, size: int, order: str = "little") -> int:
    return int.from_bytes(image[at : at + size], "big" if order == "big" else "little")
