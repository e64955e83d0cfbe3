"""Find duplicate keys and contents within a run, in bounded memory."""

import enum
import hashlib
import sqlite3
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

Value = TypeVar("Value")
# Records of one SQL statement. Each step of SQLite releases the interpreter's lock, and getting it back from busy
# threads takes longer than the step itself.
_AT_ONCE = 64
_LABEL_BYTES = 8


class Seen(enum.Enum):
    """The state of a key in this run."""

    NEW = 1
    SAME = 2
    OTHER_LABEL = 3
    OTHER_CONTENT = 4


class Meeting(NamedTuple):
    """The state of a record before this run came to it: of its key, and the first other key with its content."""

    seen: Seen
    first: str | None


class SeenKeys:
    """The keys of a run, in a temporary database that spills to disk, unlike a set; any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # The empty name is a temporary file.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE seen (name BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
        self._database.execute("CREATE TABLE content (name BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def meet(self, records: Sequence[tuple[str, bytes, str | None]]) -> list[Meeting]:
        """Add keys, their contents' hashes and labels; return for each the state before it was added."""
        with self._lock:
            return [
                meeting
                for begin in range(0, len(records), _AT_ONCE)
                for meeting in self._meet(records[begin : begin + _AT_ONCE])
            ]

    def forget(self, key: str) -> None:
        """Remove a key, because its image could not be embedded."""
        with self._lock:
            self._database.execute("DELETE FROM seen WHERE name = ?", (_digest(key),))

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Return those of the keys that have not been added."""
        with self._lock:
            found = self._database.execute
            return [key for key in keys if not found("SELECT 1 FROM seen WHERE name = ?", (_digest(key),)).fetchone()]

    def empty(self) -> bool:
        """Return whether no key has been added."""
        with self._lock:
            return self._database.execute("SELECT 1 FROM seen LIMIT 1").fetchone() is None

    def _meet(self, records: Sequence[tuple[str, bytes, str | None]]) -> list[Meeting]:
        before = self._held("seen", [(_digest(key), _label(label) + content) for key, content, label in records])
        new = [(content, key) for (key, content, _), held in zip(records, before, strict=True) if held is None]
        firsts = iter(self._held("content", new))
        meetings = []
        for (key, content, label), held in zip(records, before, strict=True):
            if held is None:
                first = next(firsts)
                meetings.append(Meeting(Seen.NEW, None if first == key else first))
            else:
                seen = Seen.SAME if held[:_LABEL_BYTES] == _label(label) else Seen.OTHER_LABEL
                meetings.append(Meeting(seen if held[_LABEL_BYTES:] == content else Seen.OTHER_CONTENT, None))
        return meetings

    def _held(self, table: str, rows: Sequence[tuple[bytes, Value]]) -> list[Value | None]:
        """Return each row's value in a table before that row (None for none), and store the new ones."""
        if not rows:
            return []
        names = [name for name, _ in rows]
        among = ",".join("?" * len(names))
        held = dict(self._database.execute(f"SELECT name, value FROM {table} WHERE name IN ({among})", names))  # noqa: S608
        before: list[Value | None] = []
        new: list[bytes | Value] = []
        for name, value in rows:
            before.append(held.get(name))
            if name not in held:
                held[name] = value
                new += [name, value]
        if new:
            values = ",".join(["(?,?)"] * (len(new) // 2))
            self._database.execute(f"INSERT INTO {table} VALUES {values}", new)  # noqa: S608
        return before

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()


def _label(label: str | None) -> bytes:
    """Return a hash of a label, zeros for none."""
    return hashlib.blake2b(label.encode(), digest_size=_LABEL_BYTES).digest() if label else bytes(_LABEL_BYTES)


def _digest(key: str) -> bytes:
    """Return a hash of 128 bits, enough that different keys do not collide in practice."""
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
