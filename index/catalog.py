"""The collections of a data folder: one folder each, made, opened, listed and dropped by name."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from encoder.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError
from index import schema, validate
from index.collection import LocalCollection
from index.schema import read_identity, read_state, translated
from index.store import DATABASE, LOCK, WriterLock
from index.types import CollectionInfo

_FOLDER = "collections"
_TEMPORARY = ".new-"
_DROPPED = ".dropped-"


class Catalog:
    """The collections of a data folder. Every method may be called from any thread.

    Args:
        data_dir: the data folder; made when it does not exist, unless `read_only`.
        read_only: open collections for reading only, make and drop none.
    """

    def __init__(self, data_dir: Path, *, read_only: bool = False) -> None:
        self._folder = data_dir / _FOLDER
        self._read_only = read_only
        self._lock = threading.Lock()
        self._open: dict[str, LocalCollection] = {}
        if not read_only:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise FailedPreconditionError(
                    f"the data folder cannot be made ({error.strerror}): choose another one"
                ) from None

    def create(self, name: str, *, space: str, dim: int, index_kind: str = "auto") -> LocalCollection:
        """Make an empty collection and open it.

        Raises:
            AlreadyExistsError: there is one of that name.
            InvalidArgumentError: the name, the space, the dimension or the kind of index is out of its range.
        """
        validate.collection_name(name)
        validate.space(space)
        validate.dim(dim)
        validate.index_kind(index_kind)
        self._check_writable()
        with self._changing():
            if (self._folder / name).exists():
                raise AlreadyExistsError(
                    f"there is a collection {name!r} already: drop it first or choose another name"
                )
            temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self._folder))
            temporary.chmod(0o755)
            with translated(name):
                schema.create(temporary / DATABASE, space, dim, index_kind)
            temporary.rename(self._folder / name)
            _sync(self._folder)
        return self.open(name)

    def open(self, name: str) -> LocalCollection:
        """Open a collection; who opens it again gets the same one, until it is closed.

        Raises:
            NotFoundError: there is none of that name.
            FailedPreconditionError: another process has it open for writing.
            DataLossError: it is damaged.
        """
        validate.collection_name(name)
        with self._lock:
            known = self._open.get(name)
            if known is None or known.closed:
                known = LocalCollection(self._folder / name, name, read_only=self._read_only)
                self._open[name] = known
            return known

    def names(self) -> list[str]:
        """Return the names of the collections, sorted."""
        if not self._folder.is_dir():
            return []
        return sorted(path.parent.name for path in self._folder.glob(f"[a-z0-9]*/{DATABASE}"))

    def list(self) -> list[CollectionInfo]:
        """Return the state of every collection, by name, also of those that another process has open."""
        return [self.describe(name) for name in self.names()]

    def describe(self, name: str) -> CollectionInfo:
        """Return the state of a collection without loading it.

        Raises:
            NotFoundError: there is none of that name.
            DataLossError: it is damaged.
        """
        path = self._folder / validate.collection_name(name) / DATABASE
        if not path.is_file():
            raise NotFoundError(f"there is no collection {name!r}: make it first, or check the data folder")
        with translated(name), contextlib.closing(schema.connect(path, read_only=True)) as connection:
            identity = read_identity(connection, name)
            state = read_state(connection, name)
        return CollectionInfo(
            name=name,
            space=identity.space,
            dim=identity.dim,
            count=state.count,
            labelled=state.labelled,
            sequence=state.sequence,
            index_kind="flat",
            disk_bytes=schema.disk_bytes(path.parent),
            created_at=identity.created_at,
        )

    def drop(self, name: str) -> int:
        """Remove a collection for good and return how many items it held.

        Raises:
            NotFoundError: there is none of that name.
            FailedPreconditionError: another process has it open for writing.
        """
        validate.collection_name(name)
        self._check_writable()
        with self._changing():
            count = self.describe(name).count
            known = self._open.pop(name, None)
            if known is not None:
                known.close()
            with contextlib.closing(WriterLock(self._folder / name / LOCK, name)):
                grave = Path(tempfile.mkdtemp(prefix=_DROPPED, dir=self._folder))
                (self._folder / name).rename(grave / name)
                _sync(self._folder)
        shutil.rmtree(grave, ignore_errors=True)
        return count

    def close(self) -> None:
        """Close every open collection; it is safe to call this twice."""
        with self._lock:
            collections = list(self._open.values())
            self._open.clear()
        for collection in collections:
            collection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_writable(self) -> None:
        if self._read_only:
            raise FailedPreconditionError("the data folder is open for reading only: open it for writing")

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Make and drop one at a time, of all processes; what a killed one left half done is removed first."""
        descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for leftover in self._folder.iterdir():
                if leftover.name.startswith((_TEMPORARY, _DROPPED)):
                    shutil.rmtree(leftover, ignore_errors=True)
            with self._lock:
                yield
        finally:
            os.close(descriptor)


def _sync(folder: Path) -> None:
    """Put the folder's entries on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
