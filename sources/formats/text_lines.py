"""Read the lines of a text file in bounded memory."""

import json
from collections.abc import Iterator
from typing import IO

from imagekin.types import JSON

MAX_LINE_BYTES = 1024 * 1024


def read_lines(file: IO[bytes]) -> Iterator[tuple[int, str | None]]:
    """Yield line numbers from 1 and lines without their ends; None for a line of more than 1 MiB.

    Bytes that are not UTF-8 become lone surrogates, as in file names.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        whole = line.endswith(b"\n") or len(line) < MAX_LINE_BYTES
        while not line.endswith(b"\n") and len(line) == MAX_LINE_BYTES:
            line = file.readline(MAX_LINE_BYTES)
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        yield number, line.decode("utf-8", "surrogateescape").rstrip("\r\n") if whole else None


def json_object(text: str) -> dict[str, JSON]:
    """Parse a JSON object; raises ValueError with the reason if it is none."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value
