"""Remembers the keys and contents of a run in bounded memory: what comes twice is noticed, and what came is known."""

import enum
import hashlib
import sqlite3
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self


class Seen(enum.Enum):
    """What is known of a key."""

    NEW = 1
    SAME_CONTENT = 2
    OTHER_CONTENT = 3


class SeenKeys:
    """The keys that a run has met, in a temporary database that spills to disk: a set would grow with the source.

    May be used by several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # The empty name is a temporary file.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE seen (key BLOB PRIMARY KEY, content BLOB) WITHOUT ROWID")
        self._database.execute("CREATE TABLE content (hash BLOB PRIMARY KEY, key TEXT) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def add(self, key: str, content: bytes) -> Seen:
        """Remember a key, and say whether it had been met before with this content's hash or another."""
        digest = _digest(key)
        with self._lock:
            if self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, content)).rowcount:
                return Seen.NEW
            known = self._database.execute("SELECT content FROM seen WHERE key = ?", (digest,)).fetchone()
        return Seen.SAME_CONTENT if known == (content,) else Seen.OTHER_CONTENT

    def first_with(self, key: str, content: bytes) -> str | None:
        """Return the first key that had this content's hash, None when it is this one."""
        with self._lock:
            if self._database.execute("INSERT OR IGNORE INTO content VALUES (?, ?)", (content, key)).rowcount:
                return None
            (first,) = self._database.execute("SELECT key FROM content WHERE hash = ?", (content,)).fetchone()
        return None if first == key else str(first)

    def forget(self, key: str) -> None:
        """Forget a key, because what it names is no image after all."""
        with self._lock:
            self._database.execute("DELETE FROM seen WHERE key = ?", (_digest(key),))

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Return those of the keys that the run has not met."""
        with self._lock:
            found = self._database.execute
            return [key for key in keys if not found("SELECT 1 FROM seen WHERE key = ?", (_digest(key),)).fetchone()]

    def empty(self) -> bool:
        """Return whether the run has met nothing."""
        with self._lock:
            return self._database.execute("SELECT 1 FROM seen LIMIT 1").fetchone() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()


def _digest(key: str) -> bytes:
    """Return 128 bits: two different keys do not collide in practice, and long ones do not cost more."""
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
