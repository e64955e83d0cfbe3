"""Create, open, list and drop the collections of a data folder, which has one folder for each."""

import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from imagekin import files
from imagekin.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    ImagekinError,
    NotFoundError,
)
from imagekin.index import validation
from imagekin.index.local import snapshots, thumbnails
from imagekin.index.local.collection import LocalCollection
from imagekin.index.local.residence import Residents
from imagekin.index.local.store import DATABASE
from imagekin.index.local.verify import verify
from imagekin.index.local.writer_lock import LOCK, WriterLock
from imagekin.index.maps import saved as maps
from imagekin.index.search import ann
from imagekin.index.search.gpu.open import open_device
from imagekin.index.storage import schema
from imagekin.index.storage.connection import connect, read_settled, vacuum
from imagekin.index.storage.schema import read_identity, read_state, storage_errors
from imagekin.index.storage.segments import FOLDER
from imagekin.index.types import Progress, SnapshotDescription, VerifyReport
from imagekin.index.unknown import UnknownCollectionError
from imagekin.types import CollectionInfo, unreadable

_FOLDER = "collections"

log = logging.getLogger("imagekin.index")


class Catalog:
    """The collections of a data folder; any thread may call its methods.

    Args:
        data_dir: the data folder; created if it does not exist, unless `read_only`.
        read_only: open collections for reading only, create and drop none.
        device: device that searches sealed rows, `auto`, `cpu` or `cuda`; see
            `imagekin.index.search.gpu.open.open_device`.
        check_first: verify the derived files of a collection before it is used, as suits a command that uses it for a
            moment; else a background thread does.
        most_open: collections whose files are open at a time; None for what the limit on open files allows.

    Raises:
        FailedPreconditionError: the folder cannot be created, or there is no such device.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        read_only: bool = False,
        device: str = "cpu",
        check_first: bool = False,
        most_open: int | None = None,
    ) -> None:
        self._folder = data_dir / _FOLDER
        self._snapshots = data_dir / snapshots.SNAPSHOTS
        self._read_only = read_only
        self._check_first = check_first
        self._lock = threading.Lock()
        self._open: dict[str, LocalCollection] = {}
        self._residents = Residents(most_open)
        if not read_only:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise FailedPreconditionError(
                    f"the data folder cannot be made ({error.strerror}): choose another one"
                ) from None
            self._recover()
        self._device = open_device(device)

    def create(
        self, name: str, *, space: str, dim: int, index_kind: str = "auto", thumbnail_size: int = 0
    ) -> LocalCollection:
        """Create an empty collection and open it; of images it keeps thumbnails of that many pixels, 0 for none.

        Raises:
            AlreadyExistsError: a collection of that name exists.
            InvalidArgumentError: the name, the space, the dimension or the kind of index is out of its range.
        """
        validation.collection_name(name)
        validation.space(space)
        validation.dim(dim)
        validation.index_kind(index_kind)
        thumbnails.check_size(thumbnail_size)
        self._check_writable()
        with self._exclusive():
            if (self._folder / name).exists():
                raise AlreadyExistsError(
                    f"there is a collection {name!r} already: drop it first or choose another name"
                )
            with storage_errors(name), files.new_folder(self._folder) as made:
                schema.create(made / DATABASE, space, dim, index_kind)
                thumbnails.create(made, thumbnail_size)
                files.put_folder(made, self._folder / name)
        return self.open(name)

    def open(self, name: str) -> LocalCollection:
        """Open a collection; opening it again returns the same one, until it is closed.

        Raises:
            NotFoundError: there is none of that name.
            FailedPreconditionError: another process has it open for writing.
            DataLossError: it is damaged.
        """
        validation.collection_name(name)
        with self._lock:
            known = self._open.get(name)
            if known is None or known.closed:
                known = LocalCollection(
                    self._existing(name),
                    name,
                    read_only=self._read_only,
                    device=self._device,
                    residents=self._residents,
                )
                self._open[name] = known
                if self._check_first:
                    known.check_segments()
            return known

    def names(self) -> list[str]:
        """Return the names of the collections, sorted."""
        try:
            with os.scandir(self._folder) as entries:
                names = [one.name for one in entries if one.is_dir()]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if validation.COLLECTION_NAME.fullmatch(name))

    def list(self) -> list[CollectionInfo]:
        """Return the state of every collection, by name, including those that another process has open.

        One that cannot be read has the reason in `error`, and nothing else but its name.
        """
        found = []
        for name in self.names():
            try:
                found.append(self.describe(name))
            except NotFoundError:
                continue  # dropped meanwhile
            except ImagekinError as error:
                found.append(unreadable(name, str(error)))
        return found

    def describe(self, name: str) -> CollectionInfo:
        """Return the state of a collection without loading it; one that is open here says what it does.

        Raises:
            NotFoundError: there is none of that name.
            DataLossError: it is damaged.
        """
        known = self._open.get(name)
        if known is not None and known.is_open:
            with contextlib.suppress(ImagekinError):
                return known.info()
        path = self._existing(name) / DATABASE
        with storage_errors(name):
            identity, state = read_settled(path, lambda one: (read_identity(one, name), read_state(one, name)))
        index = ann.describe(path.parent / FOLDER)
        return CollectionInfo(
            name=name,
            space=identity.space,
            dim=identity.dim,
            count=state.count,
            labelled=state.labelled,
            sequence=state.sequence,
            index_kind="flat" if index is None else index.kind,
            disk_bytes=schema.disk_bytes(path.parent),
            created_at=identity.created_at,
            recall=None if index is None else index.recall,
            id=identity.id,
            thumbnail_size=thumbnails.size_of(path.parent, name),
        )

    def id_of(self, name: str) -> str:
        """Return the id that a collection of that name has now; raises as `describe`."""
        known = self._open.get(name)
        if known is not None and known.is_current():
            return known.id
        path = self._existing(name) / DATABASE
        with storage_errors(name):
            return read_settled(path, lambda one: read_identity(one, name).id)

    def drop(self, name: str) -> int:
        """Delete a collection, and return the number of its items.

        Raises:
            NotFoundError: there is none of that name.
            FailedPreconditionError: another process has it open for writing.
        """
        validation.collection_name(name)
        self._check_writable()
        with self._exclusive():
            count = self.describe(name).count
            self._close_open(name)
            with contextlib.closing(WriterLock(self._folder / name / LOCK, name)), storage_errors(name):
                files.remove_folder(self._folder / name)
        return count

    def verify(self, name: str, *, repair: bool = False, on_progress: Progress | None = None) -> VerifyReport:
        """Check every row, checksum and segment of a collection; see `imagekin.index.local.verify.verify`.

        Raises:
            NotFoundError: there is none of that name.
            FailedPreconditionError: with `repair`, the collection is open for writing, in this or another process.
            DataLossError: the database is damaged beyond reading.
        """
        folder = self._existing(name)
        if not repair:
            return verify(folder, name, on_progress=on_progress)
        self._check_writable()
        with self._exclusive():
            self._close_open(name)
            return verify(folder, name, repair=True, on_progress=on_progress)

    def compact(self, name: str) -> tuple[int, int]:
        """Free the disk space of deleted items; return the bytes on disk before and after.

        Raises:
            NotFoundError: there is none of that name.
            FailedPreconditionError: another process has it open for writing.
            ResourceExhaustedError: there is no room for a second copy of the database; nothing has changed.
        """
        folder = self._existing(name)
        self._check_writable()
        before = schema.disk_bytes(folder)
        with self._exclusive():
            self._close_open(name)
            with contextlib.closing(WriterLock(folder / LOCK, name, " first")), storage_errors(name):
                vacuum(folder / DATABASE)
            with LocalCollection(folder, name) as collection:
                collection.compact()
        return before, schema.disk_bytes(folder)

    def snapshot(self, name: str) -> SnapshotDescription:
        """Take a snapshot of a collection into the data folder's `snapshots`, even while it is served and written.

        Raises:
            NotFoundError: there is none of that name.
            DataLossError: it is damaged.
            ResourceExhaustedError: the disk is full.
        """
        self._check_writable()
        return snapshots.take(self._existing(name) / DATABASE, name, self._snapshots)

    def snapshots(self) -> tuple[SnapshotDescription, ...]:
        """Return all snapshots, the oldest first."""
        return tuple(snapshots.all_snapshots(self._snapshots))

    def restore(self, snapshot: str, name: str | None = None, *, replace: bool = False) -> CollectionInfo:
        """Create a collection from a snapshot.

        Args:
            snapshot: the snapshot's name; that of a collection means its latest one.
            name: the new collection's name; None for the snapshot's own.
            replace: replace an existing collection.

        Raises:
            NotFoundError: there is no such snapshot.
            AlreadyExistsError: without `replace`, a collection of that name exists.
            FailedPreconditionError: with `replace`, another process has the collection open for writing.
            DataLossError: the snapshot is damaged; an existing collection is unchanged.
        """
        info = snapshots.find(self._snapshots, snapshot)
        name = validation.collection_name(name or info.collection)
        self._check_writable()
        self._check_free(name, replace)
        # Without the lock, so that other collections go on being opened and made meanwhile.
        with storage_errors(name), files.new_folder(self._folder) as made:
            if not snapshots.put_back(self._snapshots, info, made):
                log.warning(
                    "the map in snapshot %r is damaged, and left out: `imagekin map %s` makes it again", info.name, name
                )
            schema.give_new_id(made / DATABASE, name)
            with contextlib.closing(connect(made / DATABASE, read_only=True)) as connection:
                maps.give_id(made, read_identity(connection, name).id)
            with LocalCollection(made, name) as collection:
                collection.seal()
            with self._exclusive(), contextlib.ExitStack() as stack:
                self._check_free(name, replace)
                if (self._folder / name).is_dir():
                    self._close_open(name)
                    lock = WriterLock(self._folder / name / LOCK, name, ", or restore under another name with --as")
                    stack.enter_context(contextlib.closing(lock))
                files.put_folder(made, self._folder / name)
        return self.describe(name)

    def close(self) -> None:
        """Close every open collection; closing twice is safe."""
        with self._lock:
            collections = list(self._open.values())
            self._open.clear()
        for collection in collections:
            collection.close()
        if self._device is not None:
            self._device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _existing(self, name: str) -> Path:
        folder = self._folder / validation.collection_name(name)
        if not (folder / DATABASE).is_file():
            if folder.is_dir():
                raise DataLossError(f"collection {name!r} is damaged: its database is missing")
            raise UnknownCollectionError.of(name, self.names())
        return folder

    def _check_free(self, name: str, replace: bool) -> None:
        if (self._folder / name).exists() and not replace:
            raise AlreadyExistsError(
                f"there is a collection {name!r}: replace it (--replace), or restore under another name (--as)"
            )

    def _close_open(self, name: str) -> None:
        """Close the collection where it is open here."""
        known = self._open.pop(name, None)
        if known is not None:
            known.close()

    def _check_writable(self) -> None:
        if self._read_only:
            raise FailedPreconditionError("the data folder is open for reading only: open it for writing")

    def _recover(self) -> None:
        """Put right what a killed process left half done, unless another one is changing something now and has."""
        with contextlib.suppress(BlockingIOError, PermissionError), self._exclusive(fcntl.LOCK_NB):
            pass

    @contextlib.contextmanager
    def _exclusive(self, how: int = 0) -> Iterator[None]:
        """Make and drop one at a time, of all processes; what a killed one left half done is put right first."""
        descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | how)
            files.clear_leftovers(self._folder)
            with self._lock:
                yield
        finally:
            os.close(descriptor)
