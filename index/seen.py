"""Remembers the keys of a run in bounded memory, so that a key that comes twice is noticed."""

import enum
import hashlib
import sqlite3
from types import TracebackType
from typing import Self


class Seen(enum.Enum):
    """What is known of a key."""

    NEW = 1
    SAME_CONTENT = 2
    OTHER_CONTENT = 3


class SeenKeys:
    """The keys that a run has met, in a temporary database that spills to disk: a set would grow with the source.

    To be made, used and closed by one thread.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)  # the empty name is a temporary file
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE seen (key BLOB PRIMARY KEY, content BLOB) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def add(self, key: str, content: bytes) -> Seen:
        """Remember a key, and say whether it had been met before with this content's hash or another."""
        # 128 bits: two different keys do not collide in practice, and long ones do not cost more.
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        if self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, content)).rowcount:
            return Seen.NEW
        known = self._database.execute("SELECT content FROM seen WHERE key = ?", (digest,)).fetchone()
        return Seen.SAME_CONTENT if known == (content,) else Seen.OTHER_CONTENT

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
