"""The last acknowledged sequence number, kept outside the database's log.

A log that was cut off and one with a damaged frame look alike to SQLite: it ends where the first frame fails. The first
is what a killed process leaves; the second loses acknowledged writes, which this number tells. It is written after the
commit is on disk and is not itself forced there: it may be behind the database, never ahead of it.
"""

import os
import struct
import zlib
from pathlib import Path

from imagekin.errors import DataLossError

WATERMARK = "acknowledged"
_NUMBER = struct.Struct("<QI")


class Watermark:
    """The number of one collection.

    Args:
        folder: the collection's folder.
        collection: its name, for messages.
        read_only: only check.
    """

    def __init__(self, folder: Path, collection: str, *, read_only: bool) -> None:
        self._path = folder / WATERMARK
        self._collection = collection
        self._file: int | None = None
        if not read_only:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def read(self) -> int:
        """Return the number; 0 when it is not known."""
        try:
            number, checksum = _NUMBER.unpack(self._path.read_bytes())
        except (OSError, struct.error):
            return 0
        return int(number) if checksum == _checksum(number) else 0

    def check(self, sequence: int) -> None:
        """Raise DataLossError unless the database reaches as far as what was acknowledged."""
        number = self.read()
        # A reader's transaction may begin before the writer's latest commit; only the writer can tell.
        if self._file is not None and number > sequence:
            raise DataLossError(
                f"collection {self._collection!r} is damaged: its writes {sequence + 1} to {number} were acknowledged"
                " and are missing; restore a snapshot, or go on without them by `imagekin collection verify --repair`"
            )

    def write(self, sequence: int) -> None:
        """Note that everything up to `sequence` was acknowledged; a disk that refuses is no reason to fail a write."""
        if self._file is not None:
            try:
                os.pwrite(self._file, _NUMBER.pack(sequence, _checksum(sequence)), 0)
            except OSError:
                return

    def forget(self) -> None:
        """Go on without what is missing."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; closing twice is safe."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _checksum(number: int) -> int:
    return zlib.crc32(number.to_bytes(8, "little"))
