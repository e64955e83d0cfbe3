"""Read Parquet files of images or vectors, row group by row group."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imagekin.errors import ImagekinError, InvalidArgumentError
from imagekin.sources.formats.table_rows import (
    KEY_COLUMNS,
    LABEL_COLUMNS,
    PATH_COLUMNS,
    PAYLOAD_COLUMN,
    first_of,
    row_metadata,
)
from imagekin.sources.pieces import Piece
from imagekin.sources.places import Place
from imagekin.sources.records import Record, SourceError, Vector, VectorInfo, printable, record_of, size_problem

_SPACE = b"imagekin.space"
_VECTOR_COLUMNS = ("vector", "embedding", "embeddings")
_IMAGE_COLUMNS = ("image", "img", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp", "content")
_HASH_COLUMN = "content_hash"
_IMAGES_AT_ONCE = 64
_VECTORS_AT_ONCE = 4096
_DAMAGE: tuple[type[Exception], ...] = (ImagekinError, OSError, pa.ArrowException, UnicodeDecodeError)


class _Columns(NamedTuple):
    """The columns of a file by meaning; None for a column that it lacks."""

    data: str
    dim: int | None
    key: str | None
    label: str | None
    hash: str | None
    others: tuple[str, ...]
    classes: list[str] | None

    @property
    def all(self) -> list[str]:
        named = (self.data, self.key, self.label, self.hash, *self.others)
        return list(dict.fromkeys(name for name in named if name is not None))


class ParquetSource:
    """The rows of a Parquet file.

    Images are in a column of bytes (`image`, `bytes`, …) or of `{bytes, path}`, as in data sets of the Hugging Face
    Hub; vectors in a column `vector` or `embedding` of lists of floats. The columns `key` (by default the path in the
    image's column, or the file's name and the row's number), `label`, `payload` (JSON) and `content_hash` are optional;
    other columns of texts, numbers and truth values become members of the payload.

    Args:
        place: the file.
        max_bytes: larger images are not read.
    """

    ignored = 0

    def __init__(self, place: Place, max_bytes: int) -> None:
        self._place = place
        self._max_bytes = max_bytes
        self._embedded: VectorInfo | None = None
        self._problem: ImagekinError | None = None
        self._rows: int | None = None
        self._firsts: list[int] = []
        try:
            with closing(place.open()) as file:
                parquet = _open(file)
                self._rows = parquet.metadata.num_rows
                sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
                self._firsts = list(accumulate(sizes[:-1], initial=0)) if sizes else []
                self._columns = _columns(parquet)
                if self._columns.dim is not None:
                    space = (parquet.schema_arrow.metadata or {}).get(_SPACE, b"").decode(errors="replace")
                    self._embedded = VectorInfo(self._columns.dim, space)
        except _DAMAGE as error:
            self._problem = SourceError(_first_line(error))

    @property
    def embedded(self) -> VectorInfo | None:
        """Description of its vectors; None when it holds images, or cannot be read."""
        return self._embedded

    def count(self) -> int | None:
        """Return the number of rows."""
        return self._rows

    def __iter__(self) -> Iterator[Record]:
        """Read the records, see `Source`."""
        if self._problem is not None:
            yield record_of(self._place.name, self._problem)
            return
        try:
            with closing(self._place.open()) as file:
                parquet = _open(file)
                for group, first in enumerate(self._firsts):
                    yield from self._group(parquet, group, first)
        except _DAMAGE as error:
            yield record_of(self._place.name, SourceError(_first_line(error)))

    def pieces(self) -> Iterator[Piece]:
        """Yield the row groups, see `imagekin.sources.pieces`."""
        if self._problem is not None:
            yield self
        for group, first in enumerate(self._firsts):
            yield _RowGroup(self, group, first)

    def read_group(self, group: int, first: int) -> Iterator[Record]:
        """Open the file, and read the row group whose first row is the file's row `first`."""
        try:
            with closing(self._place.open()) as file:
                yield from self._group(_open(file), group, first)
        except _DAMAGE as error:
            yield record_of(f"{self._place.name}#{group}", SourceError(_first_line(error)))

    def _group(self, parquet: Any, group: int, row: int) -> Iterator[Record]:
        """Read one row group; if it is damaged, the readable records are followed by one with an error."""
        size = _IMAGES_AT_ONCE if self._embedded is None else _VECTORS_AT_ONCE
        batches = parquet.iter_batches(size, row_groups=[group], columns=self._columns.all)
        while True:
            try:
                batch = next(batches, None)
            except _DAMAGE as error:
                problem = SourceError(f"rows from {row:,} on cannot be read ({_first_line(error)})")
                yield record_of(f"{self._place.name}#{group}", problem)
                return
            if batch is None:
                return
            yield from self._records(batch, row)
            row += batch.num_rows

    def _records(self, batch: Any, first: int) -> Iterator[Record]:
        names = self._columns
        texts = [name for name in names.all if name != names.data]
        cells = {name: _values(batch.column(name)) for name in texts}
        data, paths = self._data(batch)
        for place in range(batch.num_rows):
            values = {name: column[place] for name, column in cells.items()}
            key = values.pop(names.key, None) if names.key else None
            if key is None or key == "":
                key = paths[place] or f"{self._place.name}/{first + place}"
            yield self._record(str(key), data[place], values)

    def _record(self, key: str, data: bytes | Vector | str, values: dict[str, Any]) -> Record:
        names = self._columns
        digest = values.pop(names.hash, None) if names.hash else None
        if names.classes and names.label and isinstance(values.get(names.label), int):
            place = values[names.label]
            values[names.label] = names.classes[place] if 0 <= place < len(names.classes) else None
        if isinstance(data, bytes):
            data = size_problem(len(data), self._max_bytes) or data
        try:
            told = row_metadata(values, names.label, ())
        except InvalidArgumentError as error:
            return record_of(key, str(error))
        digest = digest if isinstance(digest, bytes) and len(digest) == 32 else None
        return record_of(key, data, told.label, told.payload, digest)

    def _data(self, batch: Any) -> tuple[list[bytes | Vector | str], list[str | None]]:
        """Return the images or vectors of a batch (or messages why there is none), and the paths beside images."""
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
        return ["it holds no bytes" if value is None else value for value in column.to_pylist()], paths


@dataclass(frozen=True, slots=True)
class _RowGroup:
    """A row group of a file, which is opened when this is iterated."""

    source: ParquetSource
    group: int
    first: int

    def __iter__(self) -> Iterator[Record]:
        return self.source.read_group(self.group, self.first)


def _open(file: IO[bytes]) -> Any:
    return pq.ParquetFile(
        pa.PythonFile(file, mode="r"), pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
    )


def _columns(parquet: Any) -> _Columns:
    """Determine the columns' meanings; raises InvalidArgumentError when there are neither images nor vectors."""
    schema = parquet.schema_arrow
    fields = {field.name: field.type for field in schema}
    data = next((name for name in _VECTOR_COLUMNS if name in fields and _is_vector(fields[name])), None)
    dim = None if data is None else _dim(parquet, data, fields[data])
    data = data or next((name for name in _IMAGE_COLUMNS if name in fields and _is_image(fields[name])), None)
    if data is None:
        shown = printable(", ".join(f"{name}: {kind}" for name, kind in fields.items()))[:200]
        raise InvalidArgumentError(
            f"it has neither a column of images (binary, such as 'image') nor one of vectors ('vector', a list of"
            f" floats); its columns: {shown}"
        )
    key = first_of(fields, KEY_COLUMNS + PATH_COLUMNS[:4])
    label = first_of(fields, LABEL_COLUMNS)
    digest = _HASH_COLUMN if _HASH_COLUMN in fields else None
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_floating)
    used = {data, key, label, digest}
    others = [
        name
        for name, kind in fields.items()
        if name not in used and (name == PAYLOAD_COLUMN or pa.types.is_boolean(kind) or any(is_(kind) for is_ in plain))
    ]
    return _Columns(data, dim, key, label, digest, tuple(others), _class_names(schema, label))


def _is_vector(kind: Any) -> bool:
    is_list = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))


def _is_image(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_image(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _dim(parquet: Any, name: str, kind: Any) -> int:
    """Return the number of components, from the type or from the first vector."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    for batch in parquet.iter_batches(64, columns=[name]):
        for value in batch.column(0):
            if value.is_valid:
                return len(value)
    return 0


def _vectors(column: Any, dim: int) -> list[bytes | Vector | str]:
    """Return the vectors of a column, float32 [D] each, or messages why there is none."""
    found: list[bytes | Vector | str] = []
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
    """Return a column's values; bytes of texts that are not UTF-8 become lone surrogates, as in file names."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]


def _class_names(schema: Any, label: str | None) -> list[str] | None:
    """Return the class names of an integer label from the metadata of the Hugging Face Hub's data sets."""
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = told["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _first_line(error: Exception) -> str:
    return printable((str(error).splitlines() or [""])[0][:200]) or type(error).__name__
