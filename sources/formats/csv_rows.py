"""Read the rows of tables of text: separators, encodings and headers are found by looking at the beginning."""

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any, cast

from imagekin.encoder.decoding.formats import IMAGE_SUFFIXES
from imagekin.sources.formats.table_rows import NO_NAME, Row, is_named, path_column
from imagekin.sources.formats.text_lines import read_lines
from imagekin.sources.ignored import suffix_of
from imagekin.types import JSON

_SEPARATORS = (",", ";", "\t", "|")
_CHUNK_BYTES = 64 * 1024
_EXCEL_SEPARATOR = re.compile(r'^"?sep=(.)"?\s*$', re.IGNORECASE)
# Bytes by which text of two bytes a character is known when it has no mark.
_LOOKED_AT = 256
_BYTE_ORDER_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
# What Windows' programs write that do not write UTF-8.
_OTHER_ENCODING = "cp1252"


def csv_rows(file: IO[bytes], separator: str | None = None) -> Iterator[Row]:
    """Yield the rows of a table as mappings from column to cell; a bad row is a message.

    Args:
        file: the table, open for buffered reading.
        separator: what is between cells; None to find it in the first line.
    """
    too_long: list[int] = []
    text = _as_utf8(file)

    def lines() -> Iterator[str]:
        for number, line in read_lines(text):
            if line is None:
                too_long.append(number)
            elif line.strip() or number > 1:
                yield _decoded(line) + "\n"

    found = lines()
    first = next(found, None)
    if first is not None and (named := _EXCEL_SEPARATOR.match(first)):  # which Excel reads, and writes when asked to
        separator, first = named[1], next(found, None)
    if first is None:
        return
    separator = separator or _separator(first)

    def again() -> Iterator[str]:
        yield first
        yield from found

    reader = csv.reader(again(), delimiter=separator, strict=True, skipinitialspace=True)
    names: list[str] | None = None
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Row(reader.line_num + len(too_long), f"the line cannot be used: {error}")
            continue
        while too_long:
            yield Row(too_long.pop(), "the line is longer than 1 MiB")
        if cells is None:
            return
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if names is None:
            names, is_row = _header(cells)
            if len(set(names)) < len(names):
                yield Row(reader.line_num, "the table has two columns of one name")
                return
            if not is_row:
                continue
        if len(cells) != len(names):
            yield Row(reader.line_num, f"the row has {len(cells)} cells, the table {len(names)} columns")
        else:
            yield Row(reader.line_num, {name: _cell(name, cell) for name, cell in zip(names, cells, strict=True)})


def _header(cells: Sequence[str]) -> tuple[list[str], bool]:
    """Return the names of the columns: the first row or, when that is an image's row already, names by their place.

    Columns without a name, such as those of numbers that pandas writes, are named by their place, too.
    """
    images = [place for place, cell in enumerate(cells) if suffix_of(cell) in IMAGE_SUFFIXES]
    if path_column(cells) is not None or len(images) != 1:
        return [cell or f"{NO_NAME} {place + 1}" for place, cell in enumerate(cells)], False
    names = [f"{NO_NAME} {place + 1}" for place in range(len(cells))]
    names[images[0]] = "path"
    if len(cells) == 2:
        names[1 - images[0]] = "label"
    return names, True


def _separator(line: str) -> str:
    """Return the separator with which a first line has a column of paths, else the one that gives the most cells."""

    def worth(separator: str) -> tuple[bool, int]:
        try:
            cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
        except csv.Error:
            return False, 0
        return path_column([cell.strip() for cell in cells]) is not None, len(cells)

    return max(_SEPARATORS, key=worth)


def _cell(name: str, text: str) -> JSON:
    """Return a cell's value: a number or truth value for a member of the payload that is one in JSON, else text."""
    if not text:
        return None
    if is_named(name) or text[0] not in "-0123456789tf":
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    # A name such as 12e4567 is a number that no float holds.
    return value if isinstance(value, (bool, int, float)) and value not in (math.inf, -math.inf) else text


def _decoded(line: str) -> str:
    """Return a line whose bytes were not UTF-8 as what they are in Windows' encoding."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return line.encode("utf-8", "surrogateescape").decode(_OTHER_ENCODING, "replace")
    return line


def _as_utf8(file: IO[bytes]) -> IO[bytes]:
    """Return a stream of UTF-8 for a file that begins with UTF-16's byte order mark; others as they are."""
    head = cast("Any", file).peek(_LOOKED_AT)[:_LOOKED_AT]
    encoding = _BYTE_ORDER_MARKS.get(head[:2]) or _unmarked(head)
    return file if encoding is None else cast("IO[bytes]", io.BufferedReader(_Recoded(file, encoding), _CHUNK_BYTES))


def _unmarked(head: bytes) -> str | None:
    """Return the encoding of text of two bytes a character, half of which are zero; None for other text."""
    high, low = head[1::2], head[::2]
    if len(head) < 8 or b"\0" not in head:
        return None
    if high.count(0) > 0.8 * len(high) and not low.count(0):
        return "utf-16-le"
    return "utf-16-be" if low.count(0) > 0.8 * len(low) and not high.count(0) else None


class _Recoded(io.RawIOBase):
    """The text of a file as UTF-8.

    Args:
        file: the file.
        encoding: its encoding.
    """

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._waiting:
            data = self._file.read(_CHUNK_BYTES)
            self._waiting = self._decoder.decode(data, final=not data).encode()
            if not data:
                break
        part = self._waiting[: len(buffer)]
        self._waiting = self._waiting[len(part) :]
        buffer[: len(part)] = part
        return len(part)
