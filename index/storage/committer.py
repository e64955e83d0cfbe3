"""Group commit: writes that arrive while another one is being committed share the next transaction.

The COMMIT returns once its log is synced to disk, as set in `imagekin.index.storage.connection`.
"""

import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from imagekin.errors import FailedPreconditionError, ImagekinError, UnavailableError
from imagekin.index.storage.combiner import Combiner
from imagekin.index.storage.connection import close_writing
from imagekin.index.storage.schema import State, storage_error
from imagekin.index.storage.search_priority import SearchPriority
from imagekin.index.storage.transactions import Changes, Transaction

T = TypeVar("T")
# Bounds the writes that a failed commit takes with it, and how long the first of a batch waits for the last.
_MAX_SHARED = 256

_Write = Callable[[Transaction], Any]
# The value that a write returned, and the exception that it raised.
_Answer = tuple[Any, Exception | None]


class Committer:
    """The writer of a collection's database: runs writes in transactions, several to one.

    Args:
        connection: the writer's connection; the committer closes it.
        state: the counters as the database holds them.
        reserve: called with a transaction's changes before it is committed; may raise MemoryError.
        publish: called with the changes and the new counters once they are on disk, before the writes return.
        priority: asked to yield to searches between two steps.
        collection: the collection's name, for messages.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        state: State,
        *,
        reserve: Callable[[Changes], None],
        publish: Callable[[Changes, State], None],
        priority: SearchPriority,
        collection: str,
    ) -> None:
        self._connection = connection
        self._state = state
        self._reserve = reserve
        self._publish = publish
        self._priority = priority
        self._collection = collection
        self._combiner: Combiner[_Write, _Answer] = Combiner(self._commit, max_batch=_MAX_SHARED)
        self._left = threading.Condition()
        self._inside = 0
        self._closed = False
        self._failure: ImagekinError | None = None

    @property
    def state(self) -> State:
        """Counters as of the last commit."""
        return self._state

    def run(self, write: Callable[[Transaction], T]) -> T:
        """Run `write` in a transaction, and return its value once the transaction is on disk.

        A write that raises is rolled back by itself; the others of its transaction are unaffected.
        """
        with self._left:
            if self._closed:
                raise FailedPreconditionError(f"collection {self._collection!r} is closed")
            self._inside += 1
        try:
            value, refusal = self._combiner.call(write)
        finally:
            with self._left:
                self._inside -= 1
                self._left.notify_all()
        if refusal is not None:
            raise refusal
        answer: T = value
        return answer

    def close(self) -> None:
        """Finish the waiting writes, then close the database."""
        with self._left:
            self._closed = True
            self._left.wait_for(lambda: not self._inside)
        close_writing(self._connection)

    def _commit(self, shared: Sequence[_Write]) -> list[_Answer]:
        try:
            if self._failure is not None:
                raise self._failure
            return self._write(shared)
        except BaseException as error:
            if self._connection.in_transaction:
                self._connection.rollback()
            if isinstance(error, sqlite3.Error):
                raise storage_error(error, self._collection) from error
            raise

    def _write(self, shared: Sequence[_Write]) -> list[_Answer]:
        self._connection.execute("BEGIN IMMEDIATE")
        transaction = Transaction(self._connection, self._state, self._priority)
        # A single write needs no savepoint: when it fails, the whole transaction is rolled back.
        attempt = _attempt if len(shared) > 1 else _alone
        answers = [attempt(transaction, write) for write in shared]
        transaction.store_state()
        self._reserve(transaction.changes)
        try:
            self._connection.execute("COMMIT")
            self._publish(transaction.changes, transaction.state())
            self._state = transaction.state()
        except sqlite3.Error:
            raise
        except BaseException:
            # It is on disk, but not in memory: another write would work with stale counters.
            self._failure = UnavailableError(f"collection {self._collection!r} must be opened again")
            raise
        return answers


def _alone(transaction: Transaction, write: Callable[[Transaction], T]) -> tuple[T | None, Exception | None]:
    return write(transaction), None


def _attempt(transaction: Transaction, write: Callable[[Transaction], T]) -> tuple[T | None, Exception | None]:
    mark = transaction.mark()
    transaction.connection.execute("SAVEPOINT attempt")
    try:
        answer: tuple[T | None, Exception | None] = (write(transaction), None)
    except sqlite3.Error:
        raise
    except Exception as error:
        transaction.connection.execute("ROLLBACK TO attempt")
        transaction.roll_back_to(mark)
        answer = (None, error)
    transaction.connection.execute("RELEASE attempt")
    return answer
