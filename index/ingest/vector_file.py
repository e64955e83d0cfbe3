"""Index into a Parquet file instead of a collection, to be read by DuckDB, pandas or `imagekin` itself.

The columns are those of an exported collection, see `imagekin.index.ingest.parquet`.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from imagekin import files
from imagekin.errors import InvalidArgumentError
from imagekin.index.ingest.parquet import items_schema, items_table
from imagekin.index.types import IndexedItem, VectorItem
from imagekin.types import ItemUpdate, Outcome, UpsertResult

_ROWS_AT_ONCE = 4096


class VectorFile:
    """A sink (see `intake.Sink`) that is empty at first and only grows.

    The file gets its name when the block ends without an exception; until then it has a temporary one.

    Args:
        path: the file; replaced when it exists.
        space: id of the vectors' embedding space.
        dim: their number of components.
    """

    def __init__(self, path: Path, *, space: str, dim: int) -> None:
        import pyarrow.parquet as pq

        if not path.parent.is_dir():
            raise InvalidArgumentError(f"there is no folder {path.parent}", field="out")
        self._finish = contextlib.ExitStack()
        temporary = self._finish.enter_context(files.replacing(path))
        self._dim = dim
        self._schema = items_schema(space, dim)
        self._writer: Any = pq.ParquetWriter(temporary, self._schema, compression="zstd")
        self._waiting: list[VectorItem] = []

    def content_hashes(self, keys: Sequence[str]) -> Mapping[str, bytes | None]:
        """Return an empty result, because the file is new."""
        return {}

    def get(self, keys: Sequence[str]) -> Sequence[IndexedItem | None]:
        """Return None for each key, because the file is new."""
        return [None] * len(keys)

    def scroll(self, after_sequence: int, limit: int) -> Sequence[IndexedItem]:
        """Return an empty result, because the file is new."""
        return []

    def update(self, changes: Sequence[ItemUpdate]) -> None:
        """Do nothing, because no item exists before the run."""

    def delete(self, keys: Sequence[str]) -> None:
        """Do nothing, because no item exists before the run."""

    def upsert(self, items: Sequence[VectorItem]) -> UpsertResult:
        """Write items, a row group at a time."""
        self._waiting += items
        if len(self._waiting) >= _ROWS_AT_ONCE:
            self._flush()
        return UpsertResult((Outcome.INSERTED,) * len(items), 0)

    def _flush(self) -> None:
        if self._waiting:
            vectors = np.stack([item.vector for item in self._waiting])
            self._writer.write_batch(items_table(self._waiting, vectors, self._schema))
        self._waiting = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
        except BaseException as failure:
            self._finish.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._finish.__exit__(kind, error, trace)
