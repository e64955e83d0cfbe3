"""Write who asked for what to a file, one JSON object a line, in a thread of its own."""

import json
import logging
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, Full, Queue

from imagekin.errors import FailedPreconditionError

log = logging.getLogger("imagekin.serving")

# Calls that wait to be written; when a disk is slower than that, they are counted instead.
_MOST_WAITING = 100_000
_MOST_AT_ONCE = 1_000
_PRIVATE = 0o600

Entry = dict[str, object]


class AuditLog:
    """A file of calls, appended to, readable by its owner only.

    Args:
        path: the file.

    Raises:
        FailedPreconditionError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: Queue[Entry | None] = Queue(_MOST_WAITING)
        self._lost = 0
        self._failing = False
        try:
            self._append(b"")
        except OSError as error:
            raise FailedPreconditionError(
                f"the audit log {path} cannot be written: {error.strerror}", field="audit_log"
            ) from None
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()

    def note(self, entry: Entry) -> None:
        """Write an entry soon, with the time of now."""
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"), **entry}
        try:
            self._waiting.put_nowait(entry)
        except Full:
            self._lost += 1

    def close(self) -> None:
        """Write what is left. Blocks."""
        self._waiting.put(None)
        self._thread.join()

    def _write_all(self) -> None:
        open_ = True
        while open_:
            entries = [self._waiting.get()]
            try:
                while len(entries) < _MOST_AT_ONCE:
                    entries.append(self._waiting.get_nowait())
            except Empty:
                pass
            open_ = None not in entries
            lines = [json.dumps(entry, ensure_ascii=False) for entry in entries if entry is not None]
            if self._lost:
                lines.append(json.dumps({"lost": self._lost}))
            self._write("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"), len(lines))

    def _write(self, data: bytes, lines: int) -> None:
        try:
            self._append(data)
        except OSError as error:
            self._lost += lines
            if not self._failing:
                log.error("the audit log %s cannot be written: %s", self._path, error.strerror)
            self._failing = True
        else:
            self._lost, self._failing = 0, False

    def _append(self, data: bytes) -> None:
        # Opened each time, so that a file that was moved away is followed by a new one, without a signal.
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _PRIVATE)
        try:
            while data:
                data = data[os.write(file, data) :]
        finally:
            os.close(file)
