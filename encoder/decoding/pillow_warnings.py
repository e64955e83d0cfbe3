"""Silence Pillow's warnings in the thread that decodes, and nowhere else.

Pillow warns about odd files, with texts that the file's author can vary without end. `warnings.catch_warnings` is no
help: it swaps the filters of the whole process, so two threads that decode undo each other's work. Instead one filter
stays in place whose module matcher answers yes only in threads that are inside `quiet()`.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _DecodingHere:
    """A replacement of the compiled regular expression of a warnings filter, of which only `match` is called."""

    def __init__(self) -> None:
        self.local = threading.local()

    def match(self, module: str) -> bool:
        return getattr(self.local, "depth", 0) > 0 and module.startswith("PIL.")


_here = _DecodingHere()
_filter: Any = ("ignore", None, Warning, _here, 0)


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore the warnings that Pillow raises in this thread while the context is open."""
    # The first filter that matches decides, and others may have been put in front since the last time.
    if not warnings.filters or warnings.filters[0] is not _filter:
        warnings.filters.insert(0, _filter)  # type: ignore[attr-defined]
    _here.local.depth = getattr(_here.local, "depth", 0) + 1
    try:
        yield
    finally:
        _here.local.depth -= 1
