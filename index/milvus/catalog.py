"""Create, open, list and drop the collections of a Milvus database."""

import re
import time
from types import TracebackType
from typing import Self

from imagekin.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError
from imagekin.index import validation
from imagekin.index.milvus.clock import Clock
from imagekin.index.milvus.collection import MilvusCollection
from imagekin.index.milvus.connection import MilvusConnection, StoreAddress
from imagekin.index.storage.schema import new_id
from imagekin.index.types import Progress, SnapshotDescription, VerifyReport
from imagekin.index.unknown import UnknownCollectionError
from imagekin.types import CollectionInfo

_PREFIX = "imagekin_"
_VERSION = "1"
_DIMS = range(2, 32_769)


class MilvusCatalog:
    """The collections of a Milvus database; any thread of any process may call its methods.

    A collection's description (space, dimension, time of creation) is stored in its properties in Milvus.

    Args:
        address: address of Milvus.
        read_only: open collections for reading only, create and drop none.

    Raises:
        UnavailableError: Milvus cannot be reached.
        FailedPreconditionError: pymilvus is not installed, or another process has the embedded engine's file open.
    """

    def __init__(self, address: StoreAddress, *, read_only: bool = False) -> None:
        self._connection = MilvusConnection(address)
        self._read_only = read_only
        self._clock = Clock()
        self._closed = False

    def create(
        self, name: str, *, space: str, dim: int, index_kind: str = "auto", thumbnail_size: int = 0
    ) -> MilvusCollection:
        """Create an empty collection and open it; it keeps no thumbnails, whatever `thumbnail_size` is.

        Raises:
            AlreadyExistsError: a collection of that name exists.
            InvalidArgumentError: the name, the space, the dimension or the kind of index is out of its range.
        """
        validation.collection_name(name)
        validation.space(space)
        validation.dim(dim)
        validation.index_kind(index_kind)
        if dim not in _DIMS:
            raise InvalidArgumentError(f"Milvus keeps vectors of 2 to 32,768 components, not of {dim}", field="dim")
        if index_kind not in ("auto", "flat"):
            raise InvalidArgumentError(
                f"a collection in Milvus is searched exactly here: its index is flat, not {index_kind}",
                field="index_kind",
            )
        self._check_writable()
        if self._connection.call("has_collection", _table(name)):
            raise AlreadyExistsError(f"there is a collection {name!r} already: drop it first or choose another name")
        self._connection.make(
            _table(name),
            dim,
            {
                "imagekin.version": _VERSION,
                "imagekin.space": space,
                "imagekin.dim": str(dim),
                "imagekin.created_at": repr(time.time()),
                "imagekin.id": new_id(),
            },
        )
        return self.open(name)

    def open(self, name: str) -> MilvusCollection:
        """Open a collection.

        Raises:
            NotFoundError: there is none of that name.
            FailedPreconditionError: imagekin did not make it, or a newer version did.
        """
        table, space, dim, made, own = self._identity(name)
        self._connection.call("load_collection", table)
        return MilvusCollection(
            self._connection,
            table,
            name=name,
            space=space,
            dim=dim,
            created_at=made,
            id=own,
            clock=self._clock,
            read_only=self._read_only,
        )

    def names(self) -> list[str]:
        """Return the names of the collections, sorted; tables of other applications are left out."""
        return sorted(name for table in self._connection.call("list_collections") if (name := _name(table)) is not None)

    def list(self) -> list[CollectionInfo]:
        """Return the state of every collection, by name."""
        return [self.describe(name) for name in self.names()]

    def describe(self, name: str) -> CollectionInfo:
        """Return the state of a collection.

        Raises:
            NotFoundError: there is none of that name.
        """
        return self.open(name).info()

    def id_of(self, name: str) -> str:
        """Return the id that a collection of that name has now, without opening it; raises as `open`."""
        return self._identity(name)[4]

    def drop(self, name: str) -> int:
        """Delete a collection, and return the number of its items.

        Raises:
            NotFoundError: there is none of that name.
        """
        self._check_writable()
        count = self.open(name).count()
        self._connection.write("drop_collection", _table(name))
        return count

    def verify(self, name: str, *, repair: bool = False, on_progress: Progress | None = None) -> VerifyReport:
        """Raise FailedPreconditionError, because Milvus checks its data itself."""
        raise FailedPreconditionError("imagekin verifies local collections only: see Milvus' birdwatcher")

    def compact(self, name: str) -> tuple[int, int]:
        """Raise FailedPreconditionError, because Milvus compacts by itself."""
        raise FailedPreconditionError("Milvus compacts by itself: to ask for it now, see its compact call")

    def snapshot(self, name: str) -> SnapshotDescription:
        """Raise FailedPreconditionError, because Milvus has its own tool."""
        raise _own_backup()

    def snapshots(self) -> tuple[SnapshotDescription, ...]:
        """Raise FailedPreconditionError, because Milvus has its own tool."""
        raise _own_backup()

    def restore(self, snapshot: str, name: str | None = None, *, replace: bool = False) -> CollectionInfo:
        """Raise FailedPreconditionError, because Milvus has its own tool."""
        raise _own_backup()

    def close(self) -> None:
        """Close the connection to Milvus; closing twice is safe."""
        if not self._closed:
            self._closed = True
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _identity(self, name: str) -> tuple[str, str, int, float, str]:
        """Return a collection's name in Milvus, its space, its dimension, its time of creation and its id."""
        table = _table(validation.collection_name(name))
        if not self._connection.call("has_collection", table):
            raise UnknownCollectionError.of(name, self.names(), "check the store's address")
        found = self._connection.call("describe_collection", table).get("properties", {})
        try:
            if found["imagekin.version"] != _VERSION:
                raise FailedPreconditionError(f"a newer version of imagekin made collection {name!r}: use that one")
            made = float(found["imagekin.created_at"])
            # Collections from before there were ids have only that time.
            own = found.get("imagekin.id", found["imagekin.created_at"])
            return table, found["imagekin.space"], int(found["imagekin.dim"]), made, own
        except (KeyError, ValueError):
            raise FailedPreconditionError(
                f"the collection {table} in Milvus was not made by imagekin: rename it there"
            ) from None

    def _check_writable(self) -> None:
        if self._read_only:
            raise FailedPreconditionError("the store is open for reading only: open it for writing")


def _own_backup() -> FailedPreconditionError:
    return FailedPreconditionError(
        "collections in Milvus are copied with Milvus' own tool, milvus-backup; imagekin collection export writes one"
        " to a Parquet file"
    )


def _table(name: str) -> str:
    """Return a collection's name in Milvus, with D for hyphens, which Milvus does not allow."""
    return _PREFIX + name.replace("-", "D")


def _name(table: str) -> str | None:
    name = table.removeprefix(_PREFIX).replace("D", "-")
    made_here = table.startswith(_PREFIX) and re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name)
    return name if made_here else None
