"""The last acknowledged sequence number, kept outside the database's write-ahead log.

SQLite ends a log at its first invalid frame, and cannot tell a log that a killed process left unfinished from one with
a damaged frame. In the second case acknowledged writes are lost, which this number detects. It is written after the
commit is on disk, without fsync: it may be behind the database, but never ahead of it.
"""

import os
import struct
import zlib
from pathlib import Path

from imagekin.errors import DataLossError

_FILE_NAME = "acknowledged"
_NUMBER = struct.Struct("<QI")


class Watermark:
    """The file that holds the number of one collection.

    Args:
        folder: the collection's folder.
        collection: its name, for messages.
        read_only: only check.
    """

    def __init__(self, folder: Path, collection: str, *, read_only: bool) -> None:
        self._path = folder / _FILE_NAME
        self._collection = collection
        self._file: int | None = None
        if not read_only:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def read(self) -> int:
        """Return the number; 0 when it is unknown."""
        try:
            number, checksum = _NUMBER.unpack(self._path.read_bytes())
        except (OSError, struct.error):
            return 0
        return int(number) if checksum == _checksum(number) else 0

    def check(self, sequence: int) -> None:
        """Raise DataLossError when the database, at `sequence`, lacks acknowledged writes."""
        number = self.read()
        # A reader's transaction may begin before the writer's latest commit, so only the writer can check.
        if self._file is not None and number > sequence:
            raise DataLossError(
                f"collection {self._collection!r} is damaged: its writes {sequence + 1} to {number} were acknowledged"
                " and are missing; restore a snapshot, or go on without them by `imagekin collection verify --repair`"
            )

    def write(self, sequence: int) -> None:
        """Record that all writes up to `sequence` were acknowledged; errors of the disk are ignored."""
        if self._file is not None:
            try:
                os.pwrite(self._file, _NUMBER.pack(sequence, _checksum(sequence)), 0)
            except OSError:
                return

    def forget(self) -> None:
        """Remove the file, which accepts the loss of missing writes."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; closing twice is safe."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _checksum(number: int) -> int:
    return zlib.crc32(number.to_bytes(8, "little"))
