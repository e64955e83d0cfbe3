"""Pictures made in memory, and bytes of image files made by hand."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def picture(width: int = 37, height: int = 23) -> NDArray[np.uint8]:
    """Return smooth colours with no symmetry, uint8 [height, width, 3], computed without rounding differences."""
    y, x = np.mgrid[:height, :width]
    channels = [(x * 255) // max(width - 1, 1), (y * 255) // max(height - 1, 1), (x * x + 3 * y * y + x * y) % 256]
    return np.stack(channels, axis=-1).astype(np.uint8)


def encoded(image: Image.Image | NDArray[Any], format_: str = "PNG", **options: Any) -> bytes:
    """Return an image as a file's bytes."""
    file = BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format_, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    """Return one chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(width: int, height: int, rows: bytes, *, bits: int, colour: int, extra: bytes = b"") -> bytes:
    """Return a PNG file of any bit depth and colour type; `rows` begin with their filter byte."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff_file(tags: list[tuple[int, int, int, int]], data: bytes) -> bytes:
    """Return a little-endian TIFF file: tags as (id, type, count, value), pixels at `tiff_data_offset(tags)`."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0" + data


def tiff_grey(values: NDArray[Any], *, photometric: int = 1, sample_format: int = 1) -> bytes:
    """Return a TIFF file of one grey channel of any type."""
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    height, width = values.shape
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, values.dtype.itemsize * 8),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, 8 + 2 + 10 * 12 + 4),
        (277, 3, 1, 1),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (339, 3, 1, sample_format),
    ]
    return tiff_file(tags, data)
