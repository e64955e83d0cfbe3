"""Silence Pillow's warnings in the thread that decodes, and nowhere else.

Pillow warns about unusual files, with messages that depend on the file. `warnings.catch_warnings` cannot be used: it
changes the filters of the whole process, and threads that decode at the same time would restore each other's. Instead,
one filter stays installed, whose module pattern matches only in threads that are inside `quiet()`.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _DecodingHere:
    """A pattern for a warnings filter that matches Pillow's modules in decoding threads; only `match` is called."""

    def __init__(self) -> None:
        self.local = threading.local()

    def match(self, module: str) -> bool:
        return getattr(self.local, "depth", 0) > 0 and module.startswith("PIL.")


_here = _DecodingHere()
_filter: Any = ("ignore", None, Warning, _here, 0)


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore Pillow's warnings in this thread inside the block."""
    # The first matching filter decides, and others may have been inserted before it since the last call.
    if not warnings.filters or warnings.filters[0] is not _filter:
        warnings.filters.insert(0, _filter)  # type: ignore[attr-defined]
    _here.local.depth = getattr(_here.local, "depth", 0) + 1
    try:
        yield
    finally:
        _here.local.depth -= 1
