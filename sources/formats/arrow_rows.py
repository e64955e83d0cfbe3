"""Open the tables that hold images or vectors as columns: Parquet files, and Arrow files as `datasets` saves them."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from imagekin.errors import InvalidArgumentError
from imagekin.sources.places import LocalPlace, Place
from imagekin.sources.suffixes import ARROW_SUFFIXES

_ARROW_FILE_MAGIC = b"ARROW1"


class Rows(Protocol):
    """An open table.

    Attributes:
        schema: its Arrow schema.
    """

    schema: Any

    @property
    def sizes(self) -> list[int]:
        """Number of rows of each group of rows, which are read one by one."""
        ...

    def batches(self, most: int, columns: Sequence[str], group: int | None = None) -> Iterator[Any]:
        """Yield record batches of at most `most` rows, of one group or of all.

        Args:
            most: largest number of rows of a batch.
            columns: the columns' names; the member of a struct as `column.member`, which may come with its siblings.
            group: number of the group.
        """
        ...


@contextmanager
def opened(place: Place) -> Iterator[Rows]:
    """Open a table; pyarrow raises its own exceptions for a damaged one.

    Raises:
        InvalidArgumentError: an Arrow file elsewhere than on this machine.
    """
    if not place.name.lower().endswith(ARROW_SUFFIXES):
        with closing(place.open()) as file:
            yield _ParquetRows(file)
        return
    if not isinstance(place, LocalPlace):
        raise InvalidArgumentError("an Arrow file is read from a disk only: copy it, or save it as Parquet")
    with pa.memory_map(place.path) as mapped:
        yield _ArrowRows(mapped)


class _ParquetRows:
    """A Parquet file, see `Rows`; its groups are the row groups."""

    def __init__(self, file: IO[bytes]) -> None:
        self._parquet = pq.ParquetFile(
            pa.PythonFile(file, mode="r"), pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
        )
        self.schema = self._parquet.schema_arrow

    @property
    def sizes(self) -> list[int]:
        """Number of rows of each row group."""
        groups = range(self._parquet.num_row_groups)
        return [self._parquet.metadata.row_group(group).num_rows for group in groups]

    def batches(self, most: int, columns: Sequence[str], group: int | None = None) -> Iterator[Any]:
        """Yield record batches, see `Rows`."""
        groups = None if group is None else [group]
        return iter(self._parquet.iter_batches(most, row_groups=groups, columns=list(columns)))


class _ArrowRows:
    """An Arrow file, see `Rows`: a stream of batches (`datasets`) or a file with an index of them (polars); one group.

    It is mapped into memory, so that only what is used of the columns is read.
    """

    def __init__(self, mapped: Any) -> None:
        self._mapped = mapped
        self._is_stream = mapped.read(len(_ARROW_FILE_MAGIC)) != _ARROW_FILE_MAGIC
        self.schema = self._reader().schema

    @property
    def sizes(self) -> list[int]:
        """Number of rows of the one group, counted anew each time: a pass over the file."""
        rows = 0
        with suppress(pa.ArrowException, OSError):  # reading reports the damage, after the rows before it
            for batch in self._all():
                rows += batch.num_rows
        return [rows]

    def batches(self, most: int, columns: Sequence[str], group: int | None = None) -> Iterator[Any]:
        """Yield record batches, see `Rows`."""
        names = list(dict.fromkeys(name if name in self.schema.names else name.rpartition(".")[0] for name in columns))
        for batch in self._all():
            chosen = batch.select(names)
            chosen.validate(full=True)  # Arrow trusts offsets otherwise, and a damaged file would end the process
            for start in range(0, chosen.num_rows, most):
                yield chosen.slice(start, most)

    def _all(self) -> Iterator[Any]:
        reader = self._reader()
        if self._is_stream:
            yield from reader
        else:
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))

    def _reader(self) -> Any:
        self._mapped.seek(0)
        return pa.ipc.open_stream(self._mapped) if self._is_stream else pa.ipc.open_file(self._mapped)
