"""Keep the server's collections open, and read and write them in threads.

Callers take turns in the threads. A collection is closed only after the last thread has left it, even if the call that
started the thread was cancelled.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from collections.abc import Collection as Names
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

from imagekin.errors import FailedPreconditionError, ImagekinError, NotFoundError
from imagekin.index.interface import Collection, Collections
from imagekin.index.open import open_collections
from imagekin.index.types import SnapshotDescription
from imagekin.index.unknown import UnknownCollectionError
from imagekin.machine import cores
from imagekin.serving.observability.metrics import Metrics
from imagekin.serving.searching.batcher import SearchBatcher
from imagekin.serving.settings import Settings
from imagekin.serving.transport.callers import CALLER
from imagekin.serving.transport.fair_threads import FairThreads
from imagekin.types import CollectionInfo

log = logging.getLogger("imagekin.serving")

# With more collections, none is opened before it is used.
_OPENED_AT_START = 16
# Writers wait for the disk and share commits, so it pays to have more of them than cores.
_WRITERS = 16

P = ParamSpec("P")
R = TypeVar("R")


class OpenCollection:
    """An open collection, read and written in threads.

    Args:
        collection: the collection.
        info: its state when it was opened; name, space and dimension never change.
        readers: threads for searches and reads.
        writers: threads for writes.
        settings: the server's settings.
        metrics: records the stages; None records nothing.
    """

    def __init__(
        self,
        collection: Collection,
        info: CollectionInfo,
        readers: Executor,
        writers: Executor,
        settings: Settings,
        metrics: Metrics | None,
    ) -> None:
        self.collection = collection
        self.name = info.name
        self.space = info.space
        self.dim = info.dim
        self._state = info
        self._readers = readers
        self._writers = writers
        self._metrics = metrics
        self._inside = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._ready = asyncio.Event()
        self._ready.set()
        self._end: ImagekinError | None = None
        self.searches = SearchBatcher(
            self.read,
            workers=settings.search_workers or cores(),
            max_batch=settings.max_search_batch,
            max_queued=settings.limits.max_queued_searches,
            metrics=metrics,
        )

    @property
    def queued(self) -> int:
        """Number of queries waiting."""
        return self.searches.queued

    def state(self) -> CollectionInfo:
        """Return the collection's state as of when its files were last open; does not open them. Thread-safe."""
        if self.collection.is_open:
            self._state = self.collection.info()
        return self._state

    async def read(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a method that reads the collection, in a thread."""
        return await self._run(self._readers, call, *args, **kwargs)

    async def write(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a method that writes the collection, in a thread."""
        start = time.monotonic()
        result = await self._run(self._writers, call, *args, **kwargs)
        if self._metrics is not None:
            self._metrics.stage("write", time.monotonic() - start)
        return result

    async def retire(self) -> None:
        """Refuse new calls, wait for those in progress and close the collection."""
        self._end = self._end or _unknown_collection(self.name)
        await self._idle.wait()
        await asyncio.get_running_loop().run_in_executor(self._writers, self.collection.close)

    async def reopen(self, opened: Callable[[], Awaitable[tuple[Collection, CollectionInfo]]]) -> None:
        """Close the collection and continue with the one that `opened` returns; calls wait meanwhile.

        Raises:
            ImagekinError: it cannot be opened, or is of another space now; later calls fail with the same error.
        """
        self._ready.clear()
        try:
            await self._idle.wait()
            await asyncio.get_running_loop().run_in_executor(self._writers, self.collection.close)
            self.collection, info = await opened()
            if (info.space, info.dim) != (self.space, self.dim):
                raise FailedPreconditionError(f"collection {self.name} was replaced by another one: try again")
        except ImagekinError as error:
            self._end = error
            raise
        finally:
            self._ready.set()

    async def _run(self, executor: Executor, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        while not self._ready.is_set():
            await self._ready.wait()
        if self._end is not None:
            raise self._end
        loop = asyncio.get_running_loop()
        future = executor.submit(call, *args, **kwargs)
        self._inside += 1
        self._idle.clear()
        # Not in a `finally` here: a cancelled call ends before its thread does.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))
        return await asyncio.wrap_future(future)

    def _leave(self) -> None:
        self._inside -= 1
        if not self._inside:
            self._idle.set()


class CollectionStore:
    """All collections of the server's data folder or store; without either every call is refused.

    Args:
        settings: the server's settings.
        metrics: records the stages; None records nothing.
    """

    def __init__(self, settings: Settings, metrics: Metrics | None = None) -> None:
        self._settings = settings
        self._metrics = metrics
        place = settings.data_dir or settings.store
        self._catalog = (
            None
            if place is None
            else open_collections(place, read_only=settings.read_only, device=settings.index_device)
        )
        self._open: dict[str, OpenCollection] = {}
        self._changing = asyncio.Lock()
        workers = settings.search_workers or max(4, cores())
        self._readers = FairThreads(workers, "read")
        self._writers = FairThreads(_WRITERS, "write")

    @property
    def all(self) -> tuple[OpenCollection, ...]:
        """Open collections. Thread-safe."""
        return tuple(self._open.values())

    async def open_all(self) -> None:
        """Open the collections, unless they are many: those are opened when they are used.

        One that cannot be opened is logged and answers with its error when it is used.
        """
        if self._catalog is None:
            return
        names = await self._in_thread(self._catalog.names)
        if len(names) > _OPENED_AT_START:
            log.info("%d collections: each is opened when it is used", len(names))
            return
        for name in names:
            try:
                await self.get(name)
            except ImagekinError as error:
                log.error("collection %s cannot be opened: %s", name, error)

    async def get(self, name: str) -> OpenCollection:
        """Return an open collection.

        Raises:
            NotFoundError: there is none of that name.
            ImagekinError: it cannot be opened.
        """
        if (found := self._open.get(name)) is not None and not found.collection.closed:
            return found
        catalog = self._given()
        async with self._changing:
            if (found := self._open.get(name)) is not None and found.collection.closed:
                # Another process has put a collection of another space in its place.
                await self._open.pop(name).retire()
            if name not in self._open:
                self._open[name] = await self._enter(await self._in_thread(catalog.open, name))
            return self._open[name]

    async def create(self, name: str, *, space: str, dim: int, index_kind: str, thumbnail_size: int) -> CollectionInfo:
        """Create an empty collection.

        Raises:
            AlreadyExistsError: there is one of that name.
            InvalidArgumentError: a name, dimension or kind that cannot be.
            FailedPreconditionError: the server is a read-only replica.
        """
        catalog = self._given(writing=True)
        async with self._changing:
            made = await self._in_thread(
                lambda: catalog.create(name, space=space, dim=dim, index_kind=index_kind, thumbnail_size=thumbnail_size)
            )
            entry = self._open[name] = await self._enter(made)
        return await entry.read(lambda: entry.collection.info())

    async def drop(self, name: str) -> int:
        """Remove a collection for good and return how many items it held.

        Raises:
            NotFoundError: there is none of that name.
            FailedPreconditionError: the server is a read-only replica.
        """
        catalog = self._given(writing=True)
        async with self._changing:
            if (entry := self._open.pop(name, None)) is not None:
                await entry.retire()
            return await self._in_thread(catalog.drop, name)

    async def snapshot(self, name: str) -> SnapshotDescription:
        """Copy a collection as of now into the data folder's snapshots, while it is served.

        Raises:
            NotFoundError: there is none of that name.
            FailedPreconditionError: the server is a read-only replica.
        """
        return await self._in_thread(self._given(writing=True).snapshot, name)

    async def describe_all(self) -> list[CollectionInfo]:
        """Return the state of every collection, by name; of one that cannot be read, its name and the reason."""
        found = await self._in_thread(self._given().list)
        for info in found:
            if info.error:
                log.error("collection %s cannot be described: %s", info.name, info.error)
        return found

    async def follow(self) -> None:
        """Close collections that another process has dropped or recreated; the next call opens what is there."""
        catalog = self._given()
        for name, entry in list(self._open.items()):
            if not entry.collection.is_open and not entry.collection.closed:
                continue  # the next use finds what is there
            try:
                if await self._in_thread(catalog.id_of, name) == entry.collection.id and not entry.collection.closed:
                    continue
            except NotFoundError:
                pass
            except (ImagekinError, OSError) as error:
                log.error("collection %s cannot be followed: %s", name, error)
                continue
            async with self._changing:
                if self._open.get(name) is entry:
                    await self._open.pop(name).retire()

    async def reload(self, names: Names[str]) -> list[str]:
        """Reopen collections; calls wait for that and do not fail.

        Args:
            names: the collections' names; empty means all that exist, and closes those that no longer do.

        Returns:
            The names of the collections opened.

        Raises:
            ImagekinError: one of them could not be opened; the others were.
        """
        if self._catalog is None:
            return []
        catalog, failure = self._catalog, None
        async with self._changing:
            existing = await self._in_thread(catalog.names)
            # Those that are not open are read anew when they are.
            for name in names or [one for one in existing if one in self._open or len(existing) <= _OPENED_AT_START]:
                try:
                    await self._reopen(catalog, name)
                except ImagekinError as error:
                    log.error("collection %s cannot be opened anew: %s", name, error)
                    failure = failure or error
            gone = () if names else self._open.keys() - set(existing)
            for name in gone:
                await self._open.pop(name).retire()
        if failure is not None:
            raise failure
        return sorted(names or existing)

    async def _reopen(self, catalog: Collections, name: str) -> None:
        async def opened() -> tuple[Collection, CollectionInfo]:
            collection = await self._in_thread(catalog.open, name)
            return collection, await self._in_thread(collection.info)

        entry = self._open.get(name)
        if entry is not None:
            try:
                await entry.reopen(opened)
            except ImagekinError:
                # The next call opens it again, or fails with the reason why it cannot be opened.
                del self._open[name]
                raise
            return
        collection, info = await opened()
        self._open[name] = self._entry(collection, info)

    def check_writable(self) -> None:
        """Raise FailedPreconditionError when the server is a read-only replica or has no data folder."""
        self._given(writing=True)

    async def close(self) -> None:
        """Close all collections once the calls in progress have finished."""
        for entry in self._open.values():
            await entry.retire()
        self._open.clear()
        if self._catalog is not None:
            await self._in_thread(self._catalog.close)
        self._readers.shutdown()
        self._writers.shutdown()

    def _given(self, *, writing: bool = False) -> Collections:
        if self._catalog is None:
            raise FailedPreconditionError("this server keeps no collections: start it with --data-dir or --store")
        if writing and self._settings.read_only:
            raise FailedPreconditionError("this server is a read-only replica: write to the primary one")
        return self._catalog

    async def _enter(self, collection: Collection) -> OpenCollection:
        return self._entry(collection, await self._in_thread(collection.info))

    def _entry(self, collection: Collection, info: CollectionInfo) -> OpenCollection:
        return OpenCollection(collection, info, self._readers, self._writers, self._settings, self._metrics)

    async def _in_thread(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a method of the catalog; for an unknown name, its error suggests one that the caller may see."""
        caller = CALLER.get()

        def suggesting() -> R:
            try:
                return call(*args, **kwargs)
            except UnknownCollectionError as error:
                raise error.suggesting(caller.may_see) from None

        return await asyncio.get_running_loop().run_in_executor(self._writers, suggesting)


def _unknown_collection(name: str) -> NotFoundError:
    """Return the error for a collection that does not exist."""
    return NotFoundError(f"no collection {name[:64]!r}", field="collection")
