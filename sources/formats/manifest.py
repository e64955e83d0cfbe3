"""Read manifests: tables and annotation files that list images with their labels and payloads."""

import contextlib
import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cached_property
from itertools import islice
from typing import IO, NamedTuple

from imagekin.encoder.decoding.formats import IMAGE_SUFFIXES
from imagekin.errors import InvalidArgumentError
from imagekin.sources.formats.annotations import json_rows
from imagekin.sources.formats.csv_rows import csv_rows
from imagekin.sources.formats.table_rows import (
    KEY_COLUMNS,
    LABEL_COLUMNS,
    Row,
    class_of,
    first_of,
    one_hot_columns,
    one_label,
    path_column,
    row_metadata,
    split_column,
)
from imagekin.sources.formats.text_lines import json_object, read_lines
from imagekin.sources.ignored import Ignored, suffix_of
from imagekin.sources.labels import LOOK_AHEAD, Named
from imagekin.sources.pieces import Counted, ImageFile, Naming, Piece, Surveyed
from imagekin.sources.places import LocalPlace, Place, is_url
from imagekin.sources.records import RowError, SourceError, record_of
from imagekin.sources.splits import split_named, split_of

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
MANIFEST_SUFFIXES = (*TABLE_SUFFIXES, ".json")
_CSV_SUFFIXES = (".csv", ".tsv")
# Rows by which classes that are columns, and the folder of the images, are found.
_JUDGED_ROWS = 20
# Folders beside a table in which its images are looked for.
_MAX_FOLDERS = 100


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
    with a JSON number, `true` or `false` has that value, and an empty cell has none.

    Args:
        place: the manifest.
        max_bytes: larger images are not read.
    """

    embedded = None

    def __init__(self, place: Place, max_bytes: int) -> None:
        self._place = place
        self._max_bytes = max_bytes
        self._names: tuple[str, ...] = ()
        self._found = _columns_of(())

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
            path = row.values.get(columns.path or "")
            split = split_named(row.values.get(columns.split or ""))
            if columns.label or self._classes:
                origin = f"column {columns.label!r}" if columns.label else "columns of 0 and 1"
                with contextlib.suppress(InvalidArgumentError):
                    folder = posixpath.dirname(self._relative(path)) if isinstance(path, str) else ""
                    counts[Named(self._label(row, columns), split), folder] += 1
            elif isinstance(path, str):
                yield self._relative(path)
        yield from (Counted(named, count, origin, folder) for (named, folder), count in counts.items())
        if not is_whole:
            yield None

    def pieces(self, naming: Naming, ignored: Ignored) -> Iterator[Piece]:
        """Read the manifest, see `Reader`."""
        for row in self._safe_rows():
            if isinstance(row, SourceError):
                yield (record_of(naming.key + self._place.name, row),)
            else:
                yield self._piece(row, naming)

    def count(self) -> int | None:
        """Estimate the number of records by the lines of the manifest."""
        if suffix_of(self._place.name) == ".json":
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
            if not isinstance(row, SourceError) and not isinstance(row.values, str):
                path = row.values.get(self._columns(row).path or "")
                if isinstance(path, str) and path:
                    yield self._relative(path)

    def labels_files_beside_it(self) -> bool:
        """Return whether it gives labels or payloads to files of this machine in its folder or below it."""
        if not isinstance(self._place, LocalPlace) or not self._first:
            return False
        folder = os.path.dirname(self._place.path)
        paths = [self._relative(path) for path in self._first_paths]
        found = sum(not is_url(path) and os.path.isfile(os.path.join(folder, path)) for path in paths)
        return bool(paths) and 2 * found >= len(paths)

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
        return json_rows(file) if suffix_of(self._place.name) == ".json" else _json_lines(file)

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
        return list(islice(rows, _JUDGED_ROWS))

    @property
    def _first_paths(self) -> list[str]:
        paths = [
            row.values.get(self._columns(row).path or "") for row in self._first if not isinstance(row.values, str)
        ]
        return [path for path in paths if isinstance(path, str) and path]

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        """Columns that are classes, where no column has labels."""
        rows = [row.values for row in self._first if not isinstance(row.values, str)]
        if not rows or not self._is_csv or self._columns(self._first[0]).label:
            return ()
        return one_hot_columns(rows, self._columns(self._first[0]))

    @cached_property
    def _template(self) -> tuple[str, str]:
        """The folder before each path, and the end after it, with which it is the path of a file.

        Tables of public sets often name images without `.jpg`, or without the folder beside them.
        """
        if not isinstance(self._place, LocalPlace):
            return "", ""
        paths = [path for path in self._first_paths if not is_url(path) and not os.path.isabs(path)]
        root = os.path.dirname(self._place.path)
        if not paths or os.path.exists(os.path.join(root, paths[0])):
            return "", ""
        ends = [""] if suffix_of(paths[0]) in IMAGE_SUFFIXES else ["", *sorted(IMAGE_SUFFIXES)]
        for folder in ("", *_folders_below(root, self._place.name), ".."):
            for end in ends:
                if os.path.isfile(os.path.join(root, folder, paths[0] + end)):
                    return f"{folder}/" if folder else "", end
        return "", ""

    def _relative(self, path: str) -> str:
        """Return a path as a key, without empty and `.` parts."""
        if path.startswith("/") or is_url(path):
            return path
        before, after = self._template
        if "\\" in path and "/" not in path:  # written on Windows
            path = path.replace("\\", "/")
        whole = "/".join(part for part in f"{before}{path}{after}".split("/") if part not in ("", "."))
        return posixpath.normpath(whole) if before.startswith("..") else whole

    def _columns(self, row: Row) -> _Columns:
        names = tuple(row.values) if not isinstance(row.values, str) else ()
        if names != self._names:  # the same in every row of a table
            self._names, self._found = names, _columns_of(names)
        return self._found

    def _label(self, row: Row, columns: _Columns) -> str | None:
        if isinstance(row.values, str):
            return None
        return one_label(row.values[columns.label]) if columns.label else class_of(row.values, self._classes)

    def _piece(self, row: Row, naming: Naming) -> Piece:
        where = f"{naming.key}{self._place.name}:{row.number}"
        if isinstance(row.values, str):
            return (record_of(where, RowError(row.values)),)
        columns = self._columns(row)
        path = row.values[columns.path] if columns.path else None
        if not isinstance(path, str) or not path:
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
        split = split_named(row.values.get(columns.split or ""))
        has_label = columns.label or self._classes
        named = naming.told(relative, label, split) if has_label else naming.named(relative)
        return ImageFile(key, place, self._max_bytes, named.label, told.payload, split or named.split)


def _columns_of(names: tuple[str, ...]) -> _Columns:
    path, key = path_column(names), first_of(names, KEY_COLUMNS)
    return _Columns(path, None if key == path else key, first_of(names, LABEL_COLUMNS), split_column(names))


def _below(folder: str, path: str) -> str:
    """Return the key of a path relative to a manifest in a folder of the source."""
    return path if path.startswith("/") or is_url(path) else folder + path


def _folders_below(root: str, name: str) -> Sequence[str]:
    """Return folders in which the images of a table may lie: that of its name and split first, and none of another."""
    stem = name.partition(".")[0]
    try:
        with os.scandir(root) as entries:
            found = sorted(entry.name for entry in islice(entries, 10 * _MAX_FOLDERS) if entry.is_dir())
    except OSError:
        return ()
    found = [folder for folder in found if not folder.startswith(".")][:_MAX_FOLDERS]
    found += [f"{folder}/images" for folder in found if os.path.isdir(os.path.join(root, folder, "images"))]
    own = split_of(stem)
    # A table that names no split is one of training images, whose numbers test images may have too.
    wanted = own.split if own else "train"
    splits = {folder: None if (named := split_of(folder)) is None else named.split for folder in found}
    if own:
        found = [folder for folder in found if splits[folder] in (None, wanted)]
    return sorted(found, key=lambda one: (not one.startswith(stem), splits[one] != wanted, splits[one] is not None))


def _json_lines(file: IO[bytes]) -> Iterator[Row]:
    for number, line in read_lines(file):
        if line is None:
            yield Row(number, "the line is longer than 1 MiB")
        elif line.strip():
            try:
                yield Row(number, json_object(line))
            except ValueError as error:
                yield Row(number, f"the line cannot be used: {error}")
