"""Read manifests: CSV or JSONL files that list images with their labels and payloads."""

import contextlib
import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import IO, NamedTuple

from imagekin.errors import InvalidArgumentError
from imagekin.sources.formats.table_rows import KEY_COLUMNS, LABEL_COLUMNS, PATH_COLUMNS, first_of, row_metadata
from imagekin.sources.formats.text_lines import json_object, read_lines
from imagekin.sources.ignored import Ignored
from imagekin.sources.labels import LOOK_AHEAD, Named
from imagekin.sources.pieces import Counted, ImageFile, Naming, Piece, Surveyed
from imagekin.sources.places import Place, is_url
from imagekin.sources.records import SourceError, label_text, printable, record_of
from imagekin.types import JSON

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_CSV_SUFFIXES = (".csv", ".tsv")


class _Row(NamedTuple):
    """A row of a manifest, or a message why it is invalid."""

    number: int
    values: Mapping[str, JSON] | str


class ManifestReader:
    """The images listed in a manifest, in its order; paths are relative to the manifest.

    A CSV file begins with the names of its columns, a JSONL file has one object per line. The columns are `path`
    (required), `key` (by default the path), `label` (by default from the path's folders) and `payload` (a JSON object);
    all others become members of the payload. In CSV, a cell with a JSON number, `true` or `false` has that value, and
    an empty cell has none.

    Args:
        place: the manifest.
        max_bytes: larger images are not read.
    """

    embedded = None

    def __init__(self, place: Place, max_bytes: int) -> None:
        self._place = place
        self._max_bytes = max_bytes

    def survey(self) -> Iterator[Surveyed]:
        """Yield the number of images of each label, or the paths where folders are labels, see `Reader`."""
        counts: Counter[str | None] = Counter()
        origin = ""
        try:
            with closing(self._place.open()) as file:
                for place, row in enumerate(self._rows(file)):
                    if place == LOOK_AHEAD:
                        yield None
                        break
                    if isinstance(row.values, str):
                        continue
                    column = first_of(row.values, LABEL_COLUMNS)
                    path = row.values.get(first_of(row.values, PATH_COLUMNS) or "")
                    if column:
                        origin = f"column {column!r}"
                        with contextlib.suppress(InvalidArgumentError):
                            counts[label_text(row.values[column])] += 1
                    elif isinstance(path, str):
                        yield _relative(path)
        except (OSError, SourceError):
            yield None
        yield from (Counted(Named(label, None), count, origin) for label, count in counts.items())

    def pieces(self, naming: Naming, ignored: Ignored) -> Iterator[Piece]:
        """Read the manifest, see `Reader`."""
        try:
            with closing(self._place.open()) as file:
                for row in self._rows(file):
                    yield self._piece(row, naming)
        except (OSError, SourceError) as error:
            problem = SourceError(f"the manifest cannot be read ({error})")
            yield (record_of(naming.key + self._place.name, problem),)

    def count(self) -> int | None:
        """Estimate the number of records by the lines of the manifest."""
        try:
            with closing(self._place.open()) as file:
                if not file.seekable():
                    return None
                found = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
        except (OSError, SourceError):
            return None
        return max(0, found - self._is_csv)

    @property
    def _is_csv(self) -> bool:
        return self._place.name.lower().endswith(_CSV_SUFFIXES)

    def _rows(self, file: IO[bytes]) -> Iterator[_Row]:
        if self._is_csv:
            return _csv_rows(file, "\t" if self._place.name.lower().endswith(".tsv") else ",")
        return _json_rows(file)

    def _piece(self, row: _Row, naming: Naming) -> Piece:
        where = f"{naming.key}{self._place.name}:{row.number}"
        if isinstance(row.values, str):
            return (record_of(where, SourceError(row.values)),)
        path_column = first_of(row.values, PATH_COLUMNS)
        key_column = first_of(row.values, KEY_COLUMNS)
        label_column = first_of(row.values, LABEL_COLUMNS)
        path = row.values[path_column] if path_column else None
        if not isinstance(path, str) or not path:
            return (record_of(where, SourceError("it names no path: a manifest needs a column 'path'")),)
        key = row.values.get(key_column) if key_column else None
        key = _below(naming.key, path) if key is None or key == "" else str(key)
        try:
            told = row_metadata(row.values, label_column, {path_column or "", key_column or ""})
            place = self._place.resolve(path)
        except InvalidArgumentError as error:
            return (record_of(key, str(error)),)
        relative = _relative(path)
        named = naming.told(relative, told.label) if label_column else naming.named(relative)
        return ImageFile(key, place, self._max_bytes, named.label, told.payload, named.split)


def _relative(path: str) -> str:
    """Return a path as a key, without empty and `.` parts."""
    if path.startswith("/") or is_url(path):
        return path
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _below(folder: str, path: str) -> str:
    """Return the key of a path relative to a manifest in a folder of the source."""
    relative = _relative(path)
    return relative if relative.startswith("/") or is_url(relative) else folder + relative


def _json_rows(file: IO[bytes]) -> Iterator[_Row]:
    for number, line in read_lines(file):
        if line is None:
            yield _Row(number, "the line is longer than 1 MiB")
        elif line.strip():
            try:
                yield _Row(number, json_object(line))
            except ValueError as error:
                yield _Row(number, f"the line cannot be used: {error}")


def _csv_rows(file: IO[bytes], delimiter: str) -> Iterator[_Row]:
    too_long: list[int] = []

    def text() -> Iterator[str]:
        for number, line in read_lines(file):
            if line is None:
                too_long.append(number)
            else:
                yield line + "\n"

    reader = csv.reader(text(), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield _Row(reader.line_num + len(too_long), f"the line cannot be used: {error}")
            continue
        while too_long:
            yield _Row(too_long.pop(), "the line is longer than 1 MiB")
        if cells is None:
            return
        if not cells:
            continue
        if names is None:
            names = [name.strip() for name in cells]
            problem = _bad_header(names)
            if problem:
                yield _Row(reader.line_num, problem)
                return
        elif len(cells) != len(names):
            yield _Row(reader.line_num, f"the row has {len(cells)} cells, the table {len(names)} columns")
        else:
            yield _Row(reader.line_num, {name: _cell(name, cell) for name, cell in zip(names, cells, strict=True)})


def _bad_header(names: list[str]) -> str | None:
    if not first_of(names, PATH_COLUMNS):
        return f"the table has no column 'path', its first line is {printable(', '.join(names))[:200]!r}"
    return "the table has two columns of one name" if len(set(names)) < len(names) else None


def _cell(name: str, text: str) -> JSON:
    """Return a cell's value: a number or truth value for a member of the payload that is one in JSON, else text."""
    if not text:
        return None
    if name in PATH_COLUMNS + KEY_COLUMNS + LABEL_COLUMNS or text[0] not in "-0123456789tf":
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (bool, int, float)) else text
