"""Lock a collection for the one process at a time that may write it."""

import fcntl
import os
from pathlib import Path

from imagekin.errors import FailedPreconditionError, NotFoundError

LOCK = "lock"


class WriterLock:
    """The file lock of the only process that may write."""

    def __init__(self, path: Path, collection: str) -> None:
        while True:
            try:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:
                raise NotFoundError(f"there is no collection {collection!r}: make it first") from None
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Else its folder was replaced meanwhile, and this is the lock of what is gone.
                if path.exists() and os.path.samestat(os.stat(path), os.fstat(self._file)):
                    return
            except FileNotFoundError:
                pass
            except OSError:
                self.close()
                raise FailedPreconditionError(
                    f"collection {collection!r} is open for writing elsewhere: stop that process, or, when it is a"
                    " server, go through it with --address"
                ) from None
            self.close()

    def close(self) -> None:
        """Release the lock."""
        os.close(self._file)
