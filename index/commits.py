"""Group commit: one thread writes, and whatever is waiting when it begins shares one transaction and one fsync."""

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from encoder.errors import FailedPreconditionError, KindredError, UnavailableError
from index.schema import State, as_kindred
from index.writes import Changes, Transaction

T = TypeVar("T")
# Bounds what one failure takes with it, and how long the first of many waits for the last.
MAX_SHARED = 256

_Request = tuple[Callable[[Transaction], Any], "Future[Any]"]


class Committer:
    """Runs writes on its own thread, several to a transaction.

    Args:
        connection: the writer's connection; the committer closes it.
        state: the counters as the database holds them.
        reserve: called with a transaction's changes before it is committed; may fail (want of memory).
        publish: called with the changes and the new counters once they are on disk, before the writes return.
        collection: the collection's name, for messages.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        state: State,
        *,
        reserve: Callable[[Changes], None],
        publish: Callable[[Changes, State], None],
        collection: str,
    ) -> None:
        self._connection = connection
        self._state = state
        self._reserve = reserve
        self._publish = publish
        self._collection = collection
        self._queue: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._failure: KindredError | None = None

    @property
    def state(self) -> State:
        """The counters as of the last commit."""
        return self._state

    def run(self, write: Callable[[Transaction], T]) -> T:
        """Run `write` in a transaction, return what it returned once that is on disk.

        A write that raises is undone alone; those that shared its transaction are not touched.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise FailedPreconditionError(f"collection {self._collection!r} is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name=f"commit-{self._collection}", daemon=True)
                self._thread.start()
            self._queue.put((write, future))
        return future.result()

    def close(self) -> None:
        """Finish what is waiting, then let go of the database."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        if self._thread is not None:
            self._thread.join()
        self._connection.close()

    def _serve(self) -> None:
        while True:
            request = self._queue.get()
            shared: list[_Request] = []
            while request is not None:
                shared.append(request)
                if len(shared) == MAX_SHARED or self._queue.empty():
                    break
                # This thread alone takes from the queue: what is there stays there.
                request = self._queue.get()
            if shared:
                self._commit(shared)
            if request is None:
                return

    def _commit(self, shared: list[_Request]) -> None:
        try:
            if self._failure is not None:
                raise self._failure
            answers = self._write(shared)
        except BaseException as error:  # whatever it is, it belongs to the callers, who wait for an answer
            if self._connection.in_transaction:
                self._connection.rollback()
            reason = as_kindred(error, self._collection) if isinstance(error, sqlite3.Error) else error
            for _, future in shared:
                future.set_exception(reason)
            return
        for (_, future), (value, refusal) in zip(shared, answers, strict=True):
            if refusal is None:
                future.set_result(value)
            else:
                future.set_exception(refusal)

    def _write(self, shared: list[_Request]) -> list[tuple[Any, Exception | None]]:
        self._connection.execute("BEGIN IMMEDIATE")
        transaction = Transaction(self._connection, self._state)
        answers = [_attempt(transaction, write) for write, _ in shared]
        transaction.store_state()
        self._reserve(transaction.changes)
        self._connection.execute("COMMIT")
        try:
            self._publish(transaction.changes, transaction.state())
        except BaseException:
            # On disk, but not in memory: a further write would build on what memory does not know.
            self._failure = UnavailableError(f"collection {self._collection!r} must be opened again")
            raise
        self._state = transaction.state()
        return answers


def _attempt(transaction: Transaction, write: Callable[[Transaction], T]) -> tuple[T | None, Exception | None]:
    mark = transaction.mark()
    transaction.connection.execute("SAVEPOINT attempt")
    try:
        answer: tuple[T | None, Exception | None] = (write(transaction), None)
    except sqlite3.Error:
        raise
    except Exception as error:
        transaction.connection.execute("ROLLBACK TO attempt")
        transaction.back_to(mark)
        answer = (None, error)
    transaction.connection.execute("RELEASE attempt")
    return answer
