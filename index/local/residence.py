"""Open a collection's store when it is used, and close it again when its files are needed for other collections.

A collection may exist without costing an open file: `Residence` opens its store at the first use, and `Residents`
closes those that were not used for longest. A reader follows another process that replaces the collection: it goes on
with what is there now, from its next use on, while a use that began before ends with what it began with.
"""

import contextlib
import resource
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from imagekin.errors import FailedPreconditionError
from imagekin.index.classification.classify import ClassSums
from imagekin.index.filters.payload_columns import PayloadColumns
from imagekin.index.local.store import LocalStore, ReplacedError
from imagekin.index.storage.columns import ColumnSnapshot

T = TypeVar("T")
_TRIES = 100
# Files that an open collection may take: a lock, a number, a connection that writes and up to eight that read.
_FILES_EACH = 24
_MOST, _LEAST = 512, 4


@dataclass(slots=True, eq=False)
class Stay:
    """One opening of a store, with the caches that belong to its slots.

    Attributes:
        store: the store.
        fields: columns of payload fields.
        classes: the latest sums of classes, after the number of the snapshot that they are of, and its labels.
        users: uses of it under way.
        over: True once it is to be closed after the last of them.
    """

    store: LocalStore
    fields: PayloadColumns = field(init=False)
    classes: tuple[int, list[str], ClassSums] | None = None
    users: int = 0
    over: bool = False

    def __post_init__(self) -> None:
        """Make the caches."""
        self.fields = PayloadColumns(self.store.name)


class Residence:
    """The store of one collection, open or not; any thread may use it.

    Args:
        name: the collection's name, for messages.
        open_store: opens the store; raises where there is none, or it is damaged.
        residents: bounds how many are open at a time; None for no bound.
    """

    def __init__(self, name: str, open_store: Callable[[], LocalStore], residents: "Residents | None" = None) -> None:
        self.name = name
        self.used = time.monotonic()
        self._open_store = open_store
        self._residents = residents
        self._lock = threading.Lock()
        self._closed = False
        self._stay: Stay | None = Stay(open_store())
        self.identity = self._stay.store.identity
        if residents is not None:
            residents.add(self)

    @property
    def closed(self) -> bool:
        """True after `close`, and once another collection has taken its place that holds other vectors."""
        return self._closed

    @property
    def is_open(self) -> bool:
        """True while the store is open."""
        return self._stay is not None and not self._closed

    def is_current(self) -> bool:
        """Return whether the store is open and nobody has replaced the collection since; takes no lock."""
        stay = self._stay
        return stay is not None and not self._closed and not stay.store.was_replaced()

    def latest(self) -> LocalStore:
        """Return the store that was opened last, even after `close`; opens it if it is to be opened again."""
        if (stay := self._stay) is not None:
            return stay.store
        with self.use() as stay:
            return stay.store

    @contextlib.contextmanager
    def use(self) -> Iterator[Stay]:
        """Keep the store open for the block; opens it if it is not.

        Raises:
            NotFoundError: there is no such collection any more.
            FailedPreconditionError: it was closed, another process writes it, or one of another space took its place.
            DataLossError: it is damaged.
        """
        stay = self._enter()
        try:
            yield stay
        finally:
            self._leave(stay)

    @contextlib.contextmanager
    def view(self, look: Callable[[LocalStore], contextlib.AbstractContextManager[T]]) -> Iterator[tuple[Stay, T]]:
        """Use the store with what `look` enters; both again if the collection is replaced between the two.

        Raises as `use` and `look` do.
        """
        for left in reversed(range(_TRIES)):
            with self.use() as stay, contextlib.ExitStack() as stack:
                try:
                    seen = stack.enter_context(look(stay.store))
                except ReplacedError:
                    if left:
                        continue
                    raise
                yield stay, seen
                return

    def snapshot(self) -> tuple[Stay, ColumnSnapshot]:
        """Return the latest snapshot, which stays valid whatever becomes of the store, and what it is of.

        The same as by `view`, in a fifth of the time. Raises as `use` does.
        """
        for left in reversed(range(_TRIES)):
            stay = self._enter()
            try:
                return stay, stay.store.snapshot()
            except ReplacedError:
                if not left:
                    raise
            finally:
                self._leave(stay)
        raise AssertionError  # not reached: the last try raises

    def close(self) -> None:
        """Close the store, after the uses under way for a reader's; closing twice is safe."""
        with self._lock:
            self._closed = True
            if self._stay is not None:
                self._stay.store.close()
        if self._residents is not None:
            self._residents.remove(self)

    def make_room(self) -> bool:
        """Close the store if nobody uses it; return whether it was closed. It is opened again at the next use."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            stay = self._stay
            if stay is None or stay.users:
                return False
            self._stay = None
            stay.store.close()
            return True
        finally:
            self._lock.release()

    def _enter(self) -> Stay:
        self.used = time.monotonic()
        opened = False
        with self._lock:
            if self._closed:
                raise FailedPreconditionError(f"collection {self.name!r} is closed: open it again")
            stay = self._stay
            if stay is not None and stay.store.was_replaced():
                self._stay = None
                stay.over = True
                if not stay.users:
                    stay.store.close()
                stay = None
            if stay is None:
                stay, opened = Stay(self._open_again()), True
                self._stay = stay
            stay.users += 1
        if opened and self._residents is not None:
            self._residents.add(self)
        return stay

    def _leave(self, stay: Stay) -> None:
        with self._lock:
            stay.users -= 1
            if stay.over and not stay.users:
                stay.store.close()

    def _open_again(self) -> LocalStore:
        store = self._open_store()
        if (store.identity.space, store.identity.dim) != (self.identity.space, self.identity.dim):
            store.close()
            self._closed = True
            raise FailedPreconditionError(f"collection {self.name!r} was replaced by another one: open it again")
        self.identity = store.identity
        return store


class Residents:
    """The collections whose stores are open, no more than a number that the limit on open files allows.

    Args:
        most: the number; None for what suits the process's limit.
    """

    def __init__(self, most: int | None = None) -> None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        allowed = _MOST if files == resource.RLIM_INFINITY else files // (2 * _FILES_EACH)
        self.most = max(_LEAST, min(_MOST, allowed)) if most is None else most
        self._lock = threading.Lock()
        self._open: set[Residence] = set()

    def add(self, residence: Residence) -> None:
        """Note that a store was opened, and close those used least recently of which there are too many."""
        with self._lock:
            self._open.add(residence)
            surplus = len(self._open) - self.most
            oldest = sorted(self._open - {residence}, key=lambda one: one.used) if surplus > 0 else []
        for other in oldest:
            if surplus > 0 and other.make_room():
                self.remove(other)
                surplus -= 1

    def remove(self, residence: Residence) -> None:
        """Note that a store was closed."""
        with self._lock:
            if not residence.is_open:
                self._open.discard(residence)
