"""Write a run's findings as a Parquet file: key, status and reason of each record that needs attention."""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from imagekin import files
from imagekin.index.ingest.report import Finding

_ROWS_AT_ONCE = 4096


class ReportTable:
    """A table of findings, written in batches; the file is renamed into place at the end of the block, even on errors.

    Args:
        path: the file; replaced when it exists.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._finish = contextlib.ExitStack()
        temporary = self._finish.enter_context(files.replacing(path))
        self._schema = pa.schema([pa.field(name, pa.string(), nullable=False) for name in Finding._fields])
        self._writer: Any = pq.ParquetWriter(temporary, self._schema, compression="zstd")
        self._waiting: list[Finding] = []

    def add(self, finding: Finding) -> None:
        """Write a row; only one thread at a time may do so."""
        self._waiting.append(finding)
        if len(self._waiting) == _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        columns = [pa.array(column, pa.string()) for column in zip(*self._waiting, strict=True)]
        if columns:
            self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._waiting = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # However the run ended, what it found is told.
        with self._finish:
            self._flush()
            self._writer.close()
