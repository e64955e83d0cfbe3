"""Count the parts of an image file before Pillow makes an object of each.

Limits of bytes and pixels do not bound the time that Pillow takes for a file: it parses headers in Python, where a few
bytes can be a chunk, a strip or a number. The limits here are far above the counts in real images.
"""

import io
import re
import struct

from imagekin.errors import ImageError

_MESSAGE = "image is made of too many pieces"

# Reads of a file; files of tiny chunks need the most. This many take about 0.5 s.
_MAX_READS = 500_000
# Values of one tag, including the strips of a TIFF image, of which a plane of 65,535 rows may have one per row.
_MAX_VALUES = 200_000
# Total number of values in a TIFF file's tags.
_MAX_TIFF_VALUES = 8 * _MAX_VALUES
# Total number of values in an EXIF block; those of an AVIF file are all converted to objects when it is opened.
_MAX_EXIF_VALUES = 20_000
# Pillow joins the EXIF blocks of a JPEG file, each of at most 64 KiB. A file with several photos has several blocks.
_MAX_EXIF_BLOCKS = 16
_EXIF = b"Exif\0\0"
_TIFF = (b"II", b"MM")
_BIG_TIFF = 43
# Types whose bytes Pillow keeps unconverted: byte, ASCII, signed byte, undefined.
_PLAIN_TYPES = (1, 2, 6, 7)
# Tags that point to another directory: EXIF, GPS, interoperability. Pillow reads them when it loads a TIFF image.
_DIRECTORIES = (0x8769, 0x8825, 0xA005)
_MAX_DIRECTORIES = 8
# An AVIF file consists of boxes, and its EXIF block may be anywhere: whatever looks like a block's header is checked as
# a block. It is practically impossible that random bytes look like one and refer to a directory with too many values.
_BOXES = b"ftyp"
_HEADER = re.compile(rb"II(?:\*\0|\0\*)|MM(?:\*\0|\0\*)")
_MAX_HEADERS = 64


class BoundedReader(io.BytesIO):
    """A file in memory that can be read at most _MAX_READS times.

    Raises:
        ImageError: by `read`, after that many calls.
    """

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes."""
        self._reads += 1
        if self._reads > _MAX_READS:
            raise ImageError(_MESSAGE)
        return super().read(size)


def check_file(data: bytes) -> None:
    """Check the number of tag values of a TIFF file or in an AVIF file's EXIF block, and of EXIF blocks in other files.

    Raises:
        ImageError: there are too many.
    """
    if data.startswith(_TIFF):
        _check_tags(data, _MAX_TIFF_VALUES)
    elif data[4:8] == _BOXES:
        whole = memoryview(data)
        for number, found in enumerate(_HEADER.finditer(data), 1):
            if number > _MAX_HEADERS:
                raise ImageError(_MESSAGE)
            _check_tags(whole[found.start() :], _MAX_EXIF_VALUES)
    elif data.count(_EXIF) > _MAX_EXIF_BLOCKS:
        raise ImageError(_MESSAGE)


def check_exif(block: bytes) -> None:
    """Check the tags of an EXIF block, which has the structure of a TIFF file.

    Raises:
        ImageError: its tags have too many values.
    """
    # Pillow accepts a doubled prefix, too.
    _check_tags(block.removeprefix(_EXIF).removeprefix(_EXIF), _MAX_EXIF_VALUES)


def _check_tags(data: bytes | memoryview, left: int) -> None:
    """Check that a TIFF structure's first directory and those below it have at most `left` values in total."""
    order = "<" if bytes(data[:2]) == b"II" else ">"
    big = data[2:3] == bytes([_BIG_TIFF])
    head, entry = struct.Struct(order + ("Q" if big else "H")), struct.Struct(order + ("HHQQ" if big else "HHLL"))
    waiting = _unpack(struct.Struct(order + ("Q" if big else "L")), data, 8 if big else 4)
    for _ in range(_MAX_DIRECTORIES):
        if not waiting:
            return
        start = waiting.pop()
        for number in _unpack(head, data, start):
            for index in range(min(number, _MAX_VALUES)):
                # Truncated or invalid; Pillow detects that quickly by itself.
                if not (found := _unpack(entry, data, start + head.size + index * entry.size)):
                    break
                tag, kind, count, value = found
                left -= 0 if kind in _PLAIN_TYPES else count
                if left < 0 or (kind not in _PLAIN_TYPES and count > _MAX_VALUES):
                    raise ImageError(_MESSAGE)
                if tag in _DIRECTORIES:
                    waiting.append(value)


def _unpack(form: struct.Struct, data: bytes | memoryview, offset: int) -> list[int]:
    """Return the numbers at an offset, or none if they extend beyond the data."""
    return list(form.unpack_from(data, offset)) if offset + form.size <= len(data) else []
