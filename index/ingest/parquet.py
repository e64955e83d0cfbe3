"""Export and import collections as Parquet files with one row per item.

    key: string, label: string, payload: string (JSON), content_hash: binary(32), vector: fixed_size_list<float>[D],
    thumbnail: binary (a JPEG file; only of a collection that has thumbnails)

The file's metadata hold the embedding space and the size of thumbnails. Rows are processed in batches, so that memory
does not depend on the size.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagekin import files
from imagekin.encoder.decoding.thumbnail import checked_thumbnail
from imagekin.errors import ImageError, InvalidArgumentError, NotFoundError
from imagekin.index.local.thumbnails import check_size
from imagekin.index.types import IndexedItem, VectorItem
from imagekin.sources.values import payload_text
from imagekin.types import Thumbnail, UpsertResult, Vector

_ROWS_AT_ONCE = 4096
_SPACE = b"imagekin.space"
_PIXELS = b"imagekin.thumbnail_size"
Progress = Callable[[int], None]


def items_schema(space: str, dim: int, pixels: int = 0) -> Any:
    """Return the Arrow schema of items with vectors of an embedding space and of `dim` components.

    With thumbnails of so many pixels there is a column for them.
    """
    import pyarrow as pa

    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("payload", pa.string()),
        pa.field("content_hash", pa.binary(32)),
        pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
    ]
    metadata = {_SPACE: space.encode()}
    if pixels:
        fields.append(pa.field("thumbnail", pa.binary()))
        metadata[_PIXELS] = str(pixels).encode()
    return pa.schema(fields, metadata=metadata)


def items_table(
    items: Sequence[VectorItem], vectors: Vector, schema: Any, thumbnails: Sequence[bytes | None] = ()
) -> Any:
    """Return items as an Arrow record batch of a schema of `items_schema`; `vectors` are float32 [N, D]."""
    import pyarrow as pa

    columns = [
        pa.array([item.key for item in items], pa.string()),
        pa.array([item.label for item in items], pa.string()),
        pa.array([payload_text(item.payload) for item in items], pa.string()),
        pa.array([item.content_hash for item in items], pa.binary(32)),
        pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
    ]
    if "thumbnail" in schema.names:
        columns.append(pa.array(thumbnails, pa.binary()))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def export_items(
    items: Iterable[IndexedItem],
    path: Path,
    *,
    space: str,
    dim: int,
    pixels: int = 0,
    thumbnails: Callable[[Sequence[str]], Sequence[Thumbnail | None]] | None = None,
) -> int:
    """Write items to a Parquet file, all or nothing, and return their number.

    Args:
        items: the items.
        path: the file; replaced when it exists.
        space: id of the embedding space of their vectors.
        dim: number of components of their vectors.
        pixels: size of their thumbnails; 0 writes none.
        thumbnails: returns the thumbnail of each key; that of other content than the item's is left out.
    """
    import pyarrow.parquet as pq

    schema = items_schema(space, dim, pixels)
    count = 0
    with files.replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for batch in _batches(items):
            pictures: list[bytes | None] = []
            if pixels and thumbnails is not None:
                found = thumbnails([item.key for item in batch])
                pictures = [
                    None if one is None or one.content_hash != item.content_hash else one.jpeg
                    for one, item in zip(found, batch, strict=True)
                ]
            writer.write_batch(items_table(batch, np.stack([item.vector for item in batch]), schema, pictures))
            count += len(batch)
    return count


class ParquetItems:
    """The items of a Parquet file, read in batches; the columns `key` and `vector` are required.

    Args:
        path: the file.

    Attributes:
        dim: number of components of the vectors.
        count: number of rows.
        space: embedding space that the file names, empty for none.
        pixels: size of the thumbnails, 0 without.

    Raises:
        NotFoundError: there is no such file.
        InvalidArgumentError: it is no Parquet file, or a column is missing or has another type.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not path.is_file():
            raise NotFoundError(f"there is no file {path}")
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise InvalidArgumentError(f"{path} is no Parquet file: {str(error).splitlines()[0][:200]}") from None
        schema = self._file.schema_arrow
        missing = {"key", "vector"} - set(schema.names)
        if missing:
            raise InvalidArgumentError(f"{path} has no column {sorted(missing)[0]!r}", field="columns")
        vector = schema.field("vector").type
        if not pa.types.is_fixed_size_list(vector) or not pa.types.is_floating(vector.value_type):
            raise InvalidArgumentError(
                f"the column 'vector' of {path} must be a fixed_size_list of floats, it is {vector}", field="vector"
            )
        self.dim: int = vector.list_size
        self.count: int = self._file.metadata.num_rows
        metadata = schema.metadata or {}
        self.space: str = metadata.get(_SPACE, b"").decode(errors="replace")
        self.pixels = _pixels(metadata.get(_PIXELS, b""))
        wanted = ("key", "label", "payload", "content_hash", "vector", *(("thumbnail",) if self.pixels else ()))
        self._columns = [name for name in wanted if name in schema.names]

    def __iter__(self) -> Iterator[list[VectorItem]]:
        import pyarrow as pa

        try:
            for batch in self._file.iter_batches(_ROWS_AT_ONCE, columns=self._columns):
                yield self._items(batch)
        except (pa.ArrowException, OSError) as error:
            raise InvalidArgumentError(f"the Parquet file is damaged: {str(error).splitlines()[0][:200]}") from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _items(self, batch: Any) -> list[VectorItem]:
        if batch.column("vector").null_count or batch.column("key").null_count:
            raise InvalidArgumentError("a row of the Parquet file has no key or no vector", field="vector")
        vectors = batch.column("vector").flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        vectors = vectors.reshape(batch.num_rows, self.dim)
        none = [None] * batch.num_rows
        text = {
            name: batch.column(name).to_pylist() if name in self._columns else none
            for name in ("key", "label", "payload", "content_hash", "thumbnail")
        }
        payloads = [None if value is None else _as_payload(value) for value in text["payload"]]
        rows = zip(text["key"], vectors, text["label"], payloads, text["content_hash"], strict=True)
        return [
            VectorItem(*row, thumbnail=self._thumbnail(data)) for row, data in zip(rows, text["thumbnail"], strict=True)
        ]

    def _thumbnail(self, data: bytes | None) -> bytes | None:
        """Return a thumbnail of the file, None for one that is no image."""
        if not data:
            return None
        try:
            return checked_thumbnail(data, self.pixels)
        except ImageError:
            return None


def import_items(
    source: ParquetItems, upsert: Callable[[list[VectorItem]], UpsertResult], on_progress: Progress | None = None
) -> int:
    """Upsert all items of a Parquet file, each batch durably, and return their number."""
    count = 0
    for items in source:
        upsert(items)
        count += len(items)
        if on_progress is not None:
            on_progress(len(items))
    return count


def _pixels(text: bytes) -> int:
    """Return the size of thumbnails that the metadata state, 0 when they state none that can be."""
    try:
        return check_size(int(text or b"0"))
    except (ValueError, InvalidArgumentError):
        return 0


def _as_payload(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"the payload {text[:80]!r} is no JSON object", field="payload")
    return value


def _batches(items: Iterable[IndexedItem]) -> Iterator[list[IndexedItem]]:
    batch: list[IndexedItem] = []
    for item in items:
        batch.append(item)
        if len(batch) == _ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
