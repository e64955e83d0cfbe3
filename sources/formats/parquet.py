"""Read Parquet and Arrow files of images or vectors, row group by row group."""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from imagekin.errors import ImagekinError, InvalidArgumentError
from imagekin.sources.formats.arrow_rows import Rows, opened
from imagekin.sources.formats.table_rows import (
    KEY_COLUMNS,
    LABEL_COLUMNS,
    PAYLOAD_COLUMN,
    first_of,
    one_label,
    row_metadata,
    split_column,
    split_in,
)
from imagekin.sources.ignored import Ignored
from imagekin.sources.labels import LOOK_AHEAD, Named
from imagekin.sources.pieces import Counted, Naming, Piece, Surveyed
from imagekin.sources.places import Place, first_line
from imagekin.sources.records import (
    Record,
    SourceError,
    Vector,
    VectorInfo,
    printable,
    record_of,
    size_problem,
)

_SPACE = b"imagekin.space"
_VECTOR_COLUMNS = ("vector", "embedding", "embeddings")
_IMAGE_COLUMNS = ("image", "img", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp", "content")
_HASH_COLUMN = "content_hash"
_IMAGES_AT_ONCE = 64
_VECTORS_AT_ONCE = 4096
_LABELS_AT_ONCE = 65_536
_DAMAGE: tuple[type[Exception], ...] = (ImagekinError, OSError, pa.ArrowException, UnicodeDecodeError)


class _Columns(NamedTuple):
    """The columns of a file by meaning; None for a column that it lacks."""

    data: str
    dim: int | None
    key: str | None
    label: str | None
    split: str | None
    hash: str | None
    others: tuple[str, ...]
    classes: list[str] | None
    has_paths: bool

    @property
    def all(self) -> list[str]:
        named = (self.data, self.key, self.label, self.split, self.hash, *self.others)
        return list(dict.fromkeys(name for name in named if name is not None))


class ParquetReader:
    """The rows of a Parquet or an Arrow file.

    Images are in a column of bytes (`image`, `bytes`, …) or of `{bytes, path}`, as in data sets of the Hugging Face
    Hub, whose metadata tell images and classes by any name; vectors in a column `vector` or `embedding` of lists of
    floats. The columns `key`, `label`, `payload` (JSON) and `content_hash` are optional; other columns of texts,
    numbers and truth values become members of the payload.

    A row without a key of its own has the file's name and its number, because paths beside images are often names
    that repeat; such a path becomes `path` in the payload.

    Args:
        place: the file.
        max_bytes: larger images are not read.
        label_column: the column of labels, if the user named it; None to find it.
    """

    def __init__(self, place: Place, max_bytes: int, label_column: str | None = None) -> None:
        self._place = place
        self._max_bytes = max_bytes
        self._embedded: VectorInfo | None = None
        self._problem: ImagekinError | None = None
        self._rows: int | None = None
        self._firsts: list[int] = []
        try:
            with opened(place) as rows:
                sizes = rows.sizes
                self._rows = sum(sizes)
                self._firsts = list(accumulate(sizes[:-1], initial=0)) if sizes else []
                self._columns = _columns(rows, label_column)
                if self._columns.dim is not None:
                    space = (rows.schema.metadata or {}).get(_SPACE, b"").decode(errors="replace")
                    self._embedded = VectorInfo(self._columns.dim, space)
        except _DAMAGE as error:
            self._problem = error if isinstance(error, InvalidArgumentError) else SourceError(first_line(error))

    @property
    def embedded(self) -> VectorInfo | None:
        """Description of its vectors; None when it holds images, or cannot be read."""
        return self._embedded

    def count(self) -> int | None:
        """Return the number of rows."""
        return self._rows

    @property
    def has_no_images(self) -> bool:
        """True when it is a table of something else."""
        return isinstance(self._problem, InvalidArgumentError)

    def survey(self, *, whole: bool = False) -> Iterator[Surveyed]:
        """Yield the number of images of each label, or their paths where labels are folders, see `Reader`."""
        if self._problem is not None:
            return
        names = self._columns
        if names.label is None and names.split is None and self._paths_of is None:
            yield Counted(Named(None, None), self._rows or 0)
            return
        try:
            with opened(self._place) as rows:
                yield from self._surveyed(rows, whole)
        except _DAMAGE:
            yield None

    def pieces(self, naming: Naming, ignored: Ignored) -> Iterator[Piece]:
        """Yield the row groups, see `Reader`."""
        if self._problem is not None:
            yield (naming.failure(self._place.name, SourceError(first_line(self._problem))),)
            return
        for group, first in enumerate(self._firsts):
            yield _RowGroup(self, naming, group, first)

    def read_group(self, naming: Naming, group: int, row: int) -> Iterator[Record]:
        """Read the row group whose first row is the file's row `row`; damage is one record after the readable ones."""
        size = _IMAGES_AT_ONCE if self._embedded is None else _VECTORS_AT_ONCE
        place = f"{naming.key.rstrip('/')}#{group}"
        try:
            with opened(self._place) as rows:
                batches = rows.batches(size, self._columns.all, group)
                while True:
                    try:
                        batch = next(batches, None)
                    except _DAMAGE as error:
                        problem = SourceError(f"rows from {row:,} on cannot be read ({first_line(error)})")
                        yield record_of(place, problem)
                        return
                    if batch is None:
                        return
                    yield from self._records(naming, batch, row)
                    row += batch.num_rows
        except _DAMAGE as error:
            yield record_of(place, SourceError(first_line(error)))

    @property
    def _paths_of(self) -> str | None:
        """Name of the column of paths beside the images, by which they may be labelled."""
        return self._columns.data if self._columns.has_paths else None

    def _surveyed(self, rows: Rows, whole: bool) -> Iterator[Surveyed]:
        names = self._columns
        if names.label is None and names.split is None:
            seen = 0
            column = f"{names.data}.path"
            # A column of that very name would be meant instead.
            for batch in rows.batches(LOOK_AHEAD, [names.data if column in rows.schema.names else column]):
                for path in _values(batch.column(names.data).field("path")):
                    yield path if isinstance(path, str) else Counted(Named(None, None), 1)
                seen += batch.num_rows
                if seen >= LOOK_AHEAD and not whole:
                    yield from () if seen == self._rows else (None,)
                    return
            return
        columns = [name for name in (names.label, names.split) if name is not None]
        counts: Counter[Named] = Counter()
        for batch in rows.batches(_LABELS_AT_ONCE, columns):
            cells = {name: _values(batch.column(name)) for name in columns}
            labels = cells[names.label] if names.label else [None] * batch.num_rows
            splits = cells[names.split] if names.split else [None] * batch.num_rows
            for (label, split), count in Counter(zip(map(_hashable, labels), splits, strict=True)).items():
                with contextlib.suppress(InvalidArgumentError):
                    counts[
                        Named(one_label(self._class_name(label)), split_in({names.split or "": split}, names.split))
                    ] += count
        origin = f"column {names.label!r}" if names.label else ""
        yield from (Counted(named, count, origin) for named, count in counts.items())

    def _class_name(self, label: Any) -> Any:
        """Return the name of a class by its number, where the file lists names; other values as they are."""
        if self._columns.classes is None or not isinstance(label, int):
            return label
        return self._columns.classes[label] if 0 <= label < len(self._columns.classes) else None

    def _records(self, naming: Naming, batch: Any, first: int) -> Iterator[Record]:
        names = self._columns
        texts = [name for name in names.all if name != names.data]
        cells = {name: _values(batch.column(name)) for name in texts}
        data, paths = self._data(batch)
        for place in range(batch.num_rows):
            values = {name: column[place] for name, column in cells.items()}
            key = values.pop(names.key, None) if names.key else None
            if key is None or key == "":
                key = f"{naming.key}{first + place}"
            yield self._record(naming, str(key), paths[place], data[place], values)

    def _record(
        self,
        naming: Naming,
        key: str,
        path: str | None,
        data: bytes | Vector | str | ImagekinError,
        values: dict[str, Any],
    ) -> Record:
        names = self._columns
        digest = values.pop(names.hash, None) if names.hash else None
        if names.label:
            values[names.label] = self._class_name(_hashable(values.get(names.label)))
        if isinstance(data, bytes):
            data = size_problem(len(data), self._max_bytes) or data
        if path is not None:
            values.setdefault("path", path)
        try:
            told = row_metadata(values, names.label, ())
        except InvalidArgumentError as error:
            return record_of(key, str(error))
        split = split_in(values, names.split)
        named = naming.told(path or "", told.label, split) if names.label or not path else naming.named(path)
        digest = digest if isinstance(digest, bytes) and len(digest) == 32 else None
        return record_of(key, data, named.label, told.payload, digest, split or named.split)

    def _data(self, batch: Any) -> tuple[list[bytes | Vector | str | ImagekinError], list[str | None]]:
        """Return the images or vectors of a batch (or reasons why there is none), and the paths beside images."""
        column = batch.column(self._columns.data)
        if self._columns.dim is not None:
            return _vectors(column, self._columns.dim), [None] * batch.num_rows
        paths: list[str | None] = [None] * batch.num_rows
        if pa.types.is_struct(column.type):
            struct = column
            column = struct.field("bytes")
            names = {struct.type.field(place).name for place in range(struct.type.num_fields)}
            if "path" in names:
                paths = [path if isinstance(path, str) else None for path in _values(struct.field("path"))]
        values = zip(column.to_pylist(), paths, strict=True)
        return [self._file(path) if value is None else value for value, path in values], paths

    def _file(self, path: str | None) -> bytes | str | ImagekinError:
        """Read the file that a row without bytes names, absolutely or from the table's folder, as in a manifest.

        `Dataset.to_parquet` writes images so that `datasets` has by their paths.
        """
        if not path:
            return "it holds no bytes"
        try:
            data = self._place.resolve(path).read(self._max_bytes)
        except ImagekinError as error:
            data = error
        return data if isinstance(data, bytes) else type(data)(f"it holds no bytes, and of {printable(path)}: {data}")


@dataclass(frozen=True, slots=True)
class _RowGroup:
    """A row group of a file, which is opened when this is iterated."""

    reader: ParquetReader
    naming: Naming
    group: int
    first: int

    def __iter__(self) -> Iterator[Record]:
        return self.reader.read_group(self.naming, self.group, self.first)


def _columns(rows: Rows, label_column: str | None) -> _Columns:
    """Determine the columns' meanings; raises InvalidArgumentError when there are neither images nor vectors."""
    fields = {field.name: field.type for field in rows.schema}
    features = _features(rows.schema)
    data = next((name for name in _VECTOR_COLUMNS if name in fields and _is_vector(fields[name])), None)
    dim = None if data is None else _dim(rows, data, fields[data])
    images = (*_IMAGE_COLUMNS, *(name for name, feature in features.items() if feature.get("_type") == "Image"))
    data = data or next((name for name in images if name in fields and _is_image(fields[name])), None)
    if data is None:
        shown = printable(", ".join(f"{name}: {kind}" for name, kind in fields.items()))[:200]
        raise InvalidArgumentError(
            f"it has neither a column of images (binary, such as 'image') nor one of vectors ('vector', a list of"
            f" floats); its columns: {shown}"
        )
    key = first_of(fields, KEY_COLUMNS)
    label = first_of(fields, LABEL_COLUMNS)
    label = label or next((name for name in features if name in fields and _class_names(features[name])), None)
    if label_column is not None:
        label = label_column if label_column in fields else None
        key = None if key == label else key
    split = split_column(fields)
    split = split if split and _is_text(fields[split]) else None
    digest = _HASH_COLUMN if _HASH_COLUMN in fields else None
    plain = (_is_text, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    used = {data, key, label, split, digest}
    others = [
        name
        for name, kind in fields.items()
        if name not in used and (name == PAYLOAD_COLUMN or any(is_(kind) for is_ in plain))
    ]
    has_paths = pa.types.is_struct(fields[data]) and any(field.name == "path" for field in fields[data])
    classes = _class_names(features.get(label or "", {}))
    columns = _Columns(data, dim, key, label, split, digest, tuple(others), classes, has_paths)
    if twice := [name for name in columns.all if rows.schema.names.count(name) > 1]:
        raise SourceError(f"several of its columns are named {twice[0]!r}")
    return columns


def _is_text(kind: Any) -> bool:
    """Return whether a column is of texts, be they numbered as in a column of categories."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_vector(kind: Any) -> bool:
    is_list = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))


def _is_image(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_image(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _dim(rows: Rows, name: str, kind: Any) -> int:
    """Return the number of components, from the type or from the first vector."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    for batch in rows.batches(64, [name]):
        for value in batch.column(0):
            if value.is_valid:
                return len(value)
    return 0


def _vectors(column: Any, dim: int) -> list[bytes | Vector | str | ImagekinError]:
    """Return the vectors of a column, float32 [D] each, or messages why there is none."""
    found: list[bytes | Vector | str | ImagekinError] = []
    for value in column:
        values = value.values.to_numpy(zero_copy_only=False) if value.is_valid else np.empty(0, np.float32)
        if len(values) != dim:
            found.append(f"its vector has {len(values)} components, the file's have {dim}")
            continue
        vector = values.astype(np.float32)
        if not np.isfinite(vector).all() or not vector.any():
            found.append("its vector is all zero or has a component that is not finite")
        else:
            found.append(vector)
    return found


def _values(column: Any) -> list[Any]:
    """Return a column's values; bytes of texts that are not UTF-8 become lone surrogates, as in file names.

    A number that is not one (NaN) becomes None: it stands for a missing one.
    """
    try:
        values = list(column.to_pylist())
        if pa.types.is_floating(column.type):
            return [None if value is None or math.isnan(value) else value for value in values]
        return values
    except UnicodeDecodeError:
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return the columns' descriptions in the metadata of the Hugging Face Hub's data sets; empty for other files."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _class_names(feature: dict[str, Any]) -> list[str] | None:
    """Return the class names of a column of whole numbers, or of lists of them; None for another column."""
    inner = feature.get("feature")
    names = (inner if isinstance(inner, dict) else feature).get("names")
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _hashable(label: Any) -> Any:
    """Return the first of several labels of an image: an image has one. Boxes and other structures are none."""
    label = next(iter(label), None) if isinstance(label, list) else label
    return None if isinstance(label, list | dict | tuple) else label
