"""Count the parts of an image file before Pillow makes an object of each.

Limits on bytes and pixels do not bound the time that Pillow spends on a file: it parses headers in Python, and a few
bytes make a chunk, a strip or a number of its own. No real image comes near the counts refused here.
"""

import io
import re
import struct

from imagekin.errors import ImageError

MESSAGE = "image is made of too many pieces"

# Reads of a header, of which tiny chunks need the most: some 0.5 s.
MAX_READS = 500_000
# Values of one tag, strips of a TIFF image among them: a plane of 65,535 rows may be as many strips.
MAX_VALUES = 200_000
# All numbers in a TIFF file's tags together.
_MAX_TIFF_VALUES = 8 * MAX_VALUES
# Values of an EXIF block, all numbers in it together: an AVIF file's are all made into objects while it is opened.
MAX_EXIF_VALUES = 20_000
# Pillow joins the EXIF blocks of a JPEG file, each of 64 KiB at most, into one. A file of several photos has several.
_MAX_EXIF_BLOCKS = 16
_EXIF = b"Exif\0\0"
_TIFF = (b"II", b"MM")
_BIG_TIFF = 43
# Types of which Pillow keeps the bytes as they are: byte, ASCII, signed byte, undefined.
_PLAIN_TYPES = (1, 2, 6, 7)
# Tags that point to a further directory: EXIF, GPS, interoperability. Loading a TIFF image reads them.
_DIRECTORIES = (0x8769, 0x8825, 0xA005)
_MAX_DIRECTORIES = 8
# AVIF is a file of boxes, whose EXIF block may lie anywhere: whatever begins as one does is checked as one. That random
# bytes do, point to a directory that lies in the file, and find too many values in it, takes more files than there are.
_BOXES = b"ftyp"
_HEADER = re.compile(rb"II(?:\*\0|\0\*)|MM(?:\*\0|\0\*)")
_MAX_HEADERS = 64


class BoundedReader(io.BytesIO):
    """A file in memory that can be read MAX_READS times.

    Raises:
        ImageError: on the next read.
    """

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes."""
        self._reads += 1
        if self._reads > MAX_READS:
            raise ImageError(MESSAGE)
        return super().read(size)


def check_file(data: bytes) -> None:
    """Check the tags of a TIFF file and of the EXIF block of an AVIF file, and how many EXIF blocks any other has.

    Raises:
        ImageError: there are too many.
    """
    if data.startswith(_TIFF):
        _check_tags(data, _MAX_TIFF_VALUES)
    elif data[4:8] == _BOXES:
        whole = memoryview(data)
        for number, found in enumerate(_HEADER.finditer(data), 1):
            if number > _MAX_HEADERS:
                raise ImageError(MESSAGE)
            _check_tags(whole[found.start() :], MAX_EXIF_VALUES)
    elif data.count(_EXIF) > _MAX_EXIF_BLOCKS:
        raise ImageError(MESSAGE)


def check_exif(block: bytes) -> None:
    """Check the tags of an EXIF block, which is a TIFF file inside another.

    Raises:
        ImageError: its tags have too many values.
    """
    # Pillow takes a doubled prefix too.
    _check_tags(block.removeprefix(_EXIF).removeprefix(_EXIF), MAX_EXIF_VALUES)


def _check_tags(data: bytes | memoryview, left: int) -> None:
    """Check the tags of a TIFF structure's first directory and of those below it: `left` values in all."""
    order = "<" if bytes(data[:2]) == b"II" else ">"
    big = data[2:3] == bytes([_BIG_TIFF])
    head, entry = struct.Struct(order + ("Q" if big else "H")), struct.Struct(order + ("HHQQ" if big else "HHLL"))
    waiting = _unpack(struct.Struct(order + ("Q" if big else "L")), data, 8 if big else 4)
    for _ in range(_MAX_DIRECTORIES):
        if not waiting:
            return
        start = waiting.pop()
        for number in _unpack(head, data, start):
            for index in range(min(number, MAX_VALUES)):
                # Cut off or nonsense: Pillow finds that out by itself, and soon.
                if not (found := _unpack(entry, data, start + head.size + index * entry.size)):
                    break
                tag, kind, count, value = found
                left -= 0 if kind in _PLAIN_TYPES else count
                if left < 0 or (kind not in _PLAIN_TYPES and count > MAX_VALUES):
                    raise ImageError(MESSAGE)
                if tag in _DIRECTORIES:
                    waiting.append(value)


def _unpack(form: struct.Struct, data: bytes | memoryview, offset: int) -> list[int]:
    """Return the numbers at an offset, none where the data end before."""
    return list(form.unpack_from(data, offset)) if offset + form.size <= len(data) else []
