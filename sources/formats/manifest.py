"""Read manifests: tables and annotation files that list images with their labels and payloads."""

import contextlib
import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from itertools import islice
from typing import IO, NamedTuple

from imagekin.encoder.decoding.formats import IMAGE_SUFFIXES
from imagekin.errors import InvalidArgumentError
from imagekin.sources.formats.annotations import json_rows
from imagekin.sources.formats.csv_rows import csv_rows
from imagekin.sources.formats.split_lists import NUMBERED_PATHS, NUMBERED_SPLITS, list_rows, numbered_rows
from imagekin.sources.formats.table_paths import Beside, LocalFiles, PathTemplate, find_template
from imagekin.sources.formats.table_rows import (
    KEY_COLUMNS,
    LABEL_COLUMNS,
    Row,
    class_of,
    first_of,
    one_hot_columns,
    one_label,
    only_label,
    path_column,
    row_metadata,
    split_column,
    split_in,
)
from imagekin.sources.formats.text_lines import json_object, read_lines
from imagekin.sources.ignored import Ignored, suffix_of
from imagekin.sources.labels import LOOK_AHEAD, Named
from imagekin.sources.pieces import Counted, ImageFile, Naming, Piece, Placed, Surveyed
from imagekin.sources.places import LocalPlace, Place, is_url
from imagekin.sources.records import RowError, SourceError, printable, record_of
from imagekin.sources.suffixes import LIST_SUFFIX
from imagekin.types import JSON

_CSV_SUFFIXES = (".csv", ".tsv")
# Rows by which classes that are columns, and the folder of the images, are found.
_JUDGED_ROWS = 20
# Rows by which a column of keys is found to repeat, so that it names no image.
_KEY_ROWS = 1_000
# Sets of columns that are kept in mind.
_MOST_NAMES = 1_000


class _Columns(NamedTuple):
    """The columns of a row by meaning; None for one that it lacks."""

    path: str | None
    key: str | None
    label: str | None
    split: str | None


class ManifestReader:
    """The images listed in a manifest, in its order; paths are relative to the manifest.

    The columns are `path` (required), `key` (by default the path), `label` (by default from the path's folders),
    `split` and `payload` (a JSON object), by any of the names that `imagekin.sources.formats.table_rows` knows; all
    others become members of the payload. Without a column of labels, columns of 0 and 1 are classes. In CSV, a cell
    with a JSON number, `true` or `false` has that value, and an empty cell has none. Text files are lists, see
    `imagekin.sources.formats.split_lists`.

    Args:
        place: the manifest.
        max_bytes: larger images are not read.
        label_column: the column of labels, if the user named it; None to find it.
        beside: the files beside it; by default those of its folder on this machine.
    """

    embedded = None

    def __init__(
        self, place: Place, max_bytes: int, label_column: str | None = None, beside: Beside | None = None
    ) -> None:
        self._place = place
        self._max_bytes = max_bytes
        self._label_column = label_column
        if isinstance(place, LocalPlace):
            beside = LocalFiles(os.path.dirname(os.path.abspath(place.path)))
        self._beside = beside
        self._names: tuple[str, ...] = ()
        self._found = _Columns(None, None, None, None)
        self._known: dict[tuple[str, ...], _Columns] = {}

    def survey(self, *, whole: bool = False) -> Iterator[Surveyed]:
        """Yield the number of images of each label, or the paths where folders are labels, see `Reader`."""
        counts: Counter[tuple[Named, str]] = Counter()
        origin = ""
        is_whole = True
        for place, row in enumerate(self._safe_rows()):
            if place == LOOK_AHEAD and not whole:
                is_whole = False
                break
            if isinstance(row, SourceError) or isinstance(row.values, str):
                continue
            columns = self._columns(row)
            path = _text(row.values.get(columns.path or ""))
            split = split_in(row.values, columns.split)
            if columns.label or self._classes:
                origin = f"column {columns.label!r}" if columns.label else "columns of 0 and 1"
                with contextlib.suppress(InvalidArgumentError):
                    folder = posixpath.dirname(self._relative(path)) if path and not is_url(path) else ""
                    counts[Named(self._label(row, columns), split), folder] += 1
            elif path:
                relative = self._relative(path)
                yield relative if split is None else Placed(relative, split)
        yield from (Counted(named, count, origin, folder) for (named, folder), count in counts.items())
        if not is_whole:
            yield None

    def pieces(self, naming: Naming, ignored: Ignored) -> Iterator[Piece]:
        """Read the manifest, see `Reader`."""
        for row in self._safe_rows():
            if isinstance(row, SourceError):
                yield (record_of(naming.key + self._place.name, row),)
            elif self._is_csv and not isinstance(row.values, str) and self._columns(row).path is None:
                problem = f"the table has no column 'path', its columns are {printable(', '.join(row.values))[:200]!r}"
                yield (record_of(naming.key + self._place.name, SourceError(problem)),)
                return
            else:
                yield self._piece(row, naming)

    def count(self) -> int | None:
        """Estimate the number of records by the lines of the manifest."""
        if suffix_of(self._place.name) in (".json", LIST_SUFFIX):
            return sum(1 for _ in self._safe_rows())
        try:
            with closing(self._place.open()) as file:
                if not file.seekable():
                    return None
                found, end = 0, b"\n"
                for chunk in iter(lambda: file.read(1 << 20), b""):
                    found, end = found + chunk.count(b"\n"), chunk[-1:]
        except (OSError, SourceError):
            return None
        return max(0, found + (end != b"\n") - self._is_csv)

    def paths(self) -> Iterator[str]:
        """Yield the paths of the images, relative to the manifest."""
        for row in self._safe_rows():
            if isinstance(row, SourceError) or isinstance(row.values, str):
                continue
            if path := _text(row.values.get(self._columns(row).path or "")):
                yield self._relative(path)

    def labels_files_beside_it(self) -> bool:
        """Return whether it gives labels or payloads to files beside it, in its folder or below it."""
        beside = self._beside
        if beside is None or not self._first:
            return False
        paths = [self._relative(path) for path in self._first_paths]
        found = sum(not is_url(path) and beside.is_file(path) for path in paths)
        return bool(paths) and 2 * found >= len(paths)

    def is_other_text(self) -> bool:
        """Return whether it is a text file of this machine that is no list of images."""
        is_text = suffix_of(self._place.name) == LIST_SUFFIX
        return is_text and isinstance(self._place, LocalPlace) and not self.labels_files_beside_it()

    @property
    def names_images(self) -> bool:
        """True when its first rows name image files, be these there or not."""
        return any(suffix_of(path) in IMAGE_SUFFIXES and not is_url(path) for path in self._first_paths)

    @property
    def has_no_images(self) -> bool:
        """True for a JSON file of something else; a table that cannot be used is an error."""
        if suffix_of(self._place.name) != ".json" or self._first:
            return False
        return not any(isinstance(row, SourceError) for row in self._safe_rows())

    @property
    def _is_csv(self) -> bool:
        return self._place.name.lower().endswith(_CSV_SUFFIXES)

    def _rows(self, file: IO[bytes]) -> Iterator[Row]:
        if self._is_csv:
            return csv_rows(file, "\t" if self._place.name.lower().endswith(".tsv") else None)
        if self._place.name.lower() == NUMBERED_SPLITS:
            return self._numbered(file)
        if suffix_of(self._place.name) == LIST_SUFFIX:
            return list_rows(file)
        return json_rows(file) if suffix_of(self._place.name) == ".json" else _json_lines(file)

    def _numbered(self, file: IO[bytes]) -> Iterator[Row]:
        with closing(self._place.resolve(NUMBERED_PATHS).open()) as paths:
            yield from numbered_rows(file, paths)

    def _safe_rows(self) -> Iterator[Row | SourceError]:
        try:
            with closing(self._place.open()) as file:
                yield from self._rows(file)
        except (OSError, SourceError) as error:
            yield SourceError(f"the manifest cannot be read ({error})")

    @cached_property
    def _first(self) -> list[Row]:
        """The first rows that can be used."""
        rows = (
            row for row in self._safe_rows() if not isinstance(row, SourceError) and not isinstance(row.values, str)
        )
        return list(islice(rows, _KEY_ROWS))

    @cached_property
    def _judged(self) -> list[Mapping[str, JSON]]:
        """The values of the few first rows by which columns are judged."""
        return [row.values for row in self._first[:_JUDGED_ROWS] if not isinstance(row.values, str)]

    @property
    def _first_paths(self) -> list[str]:
        rows = self._first[:_JUDGED_ROWS]
        paths = [
            _text(row.values.get(self._columns(row).path or "")) for row in rows if not isinstance(row.values, str)
        ]
        return [path for path in paths if path]

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        """Columns that are classes, where no column has labels."""
        if self._label_column or not self._judged or not self._is_csv or self._columns(self._first[0]).label:
            return ()
        return one_hot_columns(self._judged, self._columns(self._first[0]))

    @cached_property
    def _template(self) -> PathTemplate:
        """Turn its paths into those of files."""
        return self._template_of(self._first_paths) or PathTemplate()

    def _template_of(self, paths: Sequence[str]) -> PathTemplate | None:
        if self._beside is None:
            return None
        return find_template(paths, self._beside, f"{posixpath.basename(self._beside.folder)}/{self._place.name}")

    def _relative(self, path: str) -> str:
        """Return a path as a key, without empty and `.` parts."""
        return self._template(path)

    def _columns(self, row: Row) -> _Columns:
        names = tuple(row.values) if not isinstance(row.values, str) else ()
        if names != self._names:  # the same in every row of a table, and few in other files
            if names not in self._known:
                if len(self._known) >= _MOST_NAMES:
                    self._known.clear()
                self._known[names] = self._columns_of(names)
            self._names, self._found = names, self._known[names]
        return self._found

    def _columns_of(self, names: tuple[str, ...]) -> _Columns:
        path, key, label, split = self._path_of(names), first_of(names, KEY_COLUMNS), None, split_column(names)
        # Of two columns, names that repeat are the classes, whatever they are called.
        if key == path or (key is not None and len(names) == 2 and self._has_repeating_names(key)):
            key = None
        if self._label_column is not None:
            named = next((name for name in names if name.strip() == self._label_column), None)
            return _Columns(path, None if key == named else key, named, None if split == named else split)
        label = first_of([name for name in names if name != path], LABEL_COLUMNS)
        if label is None and self._is_csv and path:
            used = (path, key, split)
            if not one_hot_columns(self._judged, used):
                label = only_label(self._judged, used)
        return _Columns(path, key, label, split)

    def _path_of(self, names: tuple[str, ...]) -> str | None:
        """Return the column of paths: one that is called so or, when that names no files here, one that does."""
        named = path_column(names)
        if named is not None and self._template_of([_text(row.get(named)) for row in self._judged]) is not None:
            return named
        label = first_of(names, LABEL_COLUMNS)
        for name in names:
            # Numbers may be those of files by chance.
            paths = [path for row in self._judged if isinstance(path := row.get(name), str)]
            if name not in (named, label) and paths and self._template_of(paths) is not None:
                return name
        return named

    def _has_repeating_names(self, column: str) -> bool:
        cells = [str(row.values.get(column) or "") for row in self._first if not isinstance(row.values, str)]
        return len(set(cells)) < len(cells) and not any(cell.isdecimal() for cell in cells)

    def _label(self, row: Row, columns: _Columns) -> str | None:
        if isinstance(row.values, str):
            return None
        return one_label(row.values[columns.label]) if columns.label else class_of(row.values, self._classes)

    def _piece(self, row: Row, naming: Naming) -> Piece:
        where = f"{naming.key}{self._place.name}:{row.number}"
        if isinstance(row.values, str):
            return (record_of(where, RowError(row.values)),)
        columns = self._columns(row)
        path = _text(row.values[columns.path]) if columns.path else ""
        if not path:
            return (record_of(where, RowError("it names no path: a manifest needs a column 'path'")),)
        relative = self._relative(path)
        key = row.values.get(columns.key) if columns.key else None
        key = _below(naming.key, relative) if key is None or key == "" else str(key)
        try:
            told = row_metadata(row.values, columns.label, {columns.path, columns.key, *self._classes})
            label = self._label(row, columns)
            place = self._place.resolve(relative)
        except InvalidArgumentError as error:
            return (record_of(key, str(error)),)
        split = split_in(row.values, columns.split)
        has_label = columns.label or self._classes
        named = naming.told(relative, label, split) if has_label else naming.named(relative)
        return ImageFile(key, place, self._max_bytes, named.label, told.payload, split or named.split)


def _below(folder: str, path: str) -> str:
    """Return the key of a path relative to a manifest in a folder of the source."""
    if path.startswith("/") or is_url(path):
        return path
    whole = posixpath.normpath(folder + path) if path.startswith("../") and folder else folder + path
    return path if whole.startswith("../") else whole


def _text(cell: JSON) -> str:
    """Return the text of a cell of paths, which may be a number; empty for anything else."""
    return str(cell) if isinstance(cell, (str, int)) and not isinstance(cell, bool) else ""


def _json_lines(file: IO[bytes]) -> Iterator[Row]:
    for number, line in read_lines(file):
        if line is None:
            yield Row(number, "the line is longer than 1 MiB")
        elif line.strip():
            try:
                yield Row(number, json_object(line))
            except ValueError as error:
                yield Row(number, f"the line cannot be used: {error}")
