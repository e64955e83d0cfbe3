"""Notice when the data folder cannot be had any more: removed, unmounted, replaced, or on a disk that fails."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

# How often to look, and after how long a file system that does not answer counts as gone.
_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 10.0


class DataFolder:
    """The folder of the collections, as it was when the server started.

    Args:
        path: the folder.

    Raises:
        OSError: it cannot be had.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = _identity(path)

    def fault(self) -> str | None:
        """Return why the folder cannot be had, None when it can. Blocks for as long as the file system does."""
        try:
            if _identity(self._path) != self._identity:
                return "another folder has taken its place"
            with os.scandir(self._path) as entries:
                next(entries, None)
        except OSError as error:
            return (error.strerror or str(error)).lower()
        return None

    async def watch(self, changed: Callable[[str | None], Awaitable[None]]) -> None:
        """Look again and again, and call a function with the fault when there is one, with None when it has gone."""
        known: str | None = None
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            looking = asyncio.ensure_future(asyncio.to_thread(self.fault))
            done, _ = await asyncio.wait((looking,), timeout=_ANSWER_SECONDS)
            found = looking.result() if done else "the file system does not answer"
            if (found is None) != (known is None):
                await changed(found)
            known = found
            # No second look while the first one hangs.
            await looking


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
