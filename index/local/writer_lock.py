"""Lock a collection for the one process at a time that may write it."""

import fcntl
import os
from pathlib import Path

from imagekin.errors import FailedPreconditionError, NotFoundError

LOCK = "lock"
_BY_SERVER = ", or, when it is a server, go through it with --address"


class WriterLock:
    """The file lock of the only process that may write.

    Args:
        path: the file.
        collection: the collection's name, for messages.
        instead: what else to do than to stop the process that has it, for messages.

    Raises:
        NotFoundError: there is no such collection.
        FailedPreconditionError: another process has it.
    """

    def __init__(self, path: Path, collection: str, instead: str = _BY_SERVER) -> None:
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
                    f"collection {collection!r} is open for writing elsewhere: stop that process{instead}"
                ) from None
            self.close()

    def close(self) -> None:
        """Release the lock."""
        os.close(self._file)
