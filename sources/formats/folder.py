"""List the files of a folder and of all folders below it; links are followed, except circular ones."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from imagekin.errors import ImagekinError
from imagekin.sources.formats.file_list import Listing
from imagekin.sources.ignored import is_hidden
from imagekin.sources.records import Record, SourceError, record_of


def folder_listing(root: str) -> Listing:
    """Return a function that lists the files below a folder; hidden folders are not looked into."""
    return partial(_listed, root)


def _listed(root: str) -> Iterator[str | Record]:
    for found in walk(root):
        if found.problem:
            yield record_of(found.key or os.path.basename(root), found.problem)
        else:
            yield found.key


class FoundFile(NamedTuple):
    """A file, or a folder that cannot be read."""

    key: str
    problem: ImagekinError | None = None


class _Entered(NamedTuple):
    """A folder whose entries are being iterated."""

    prefix: str
    identity: tuple[int, int]
    entries: Iterator[tuple[str, bool]]


def walk(root: str, enters: Callable[[str], bool] | None = None) -> Iterator[FoundFile]:
    """Yield all files below a folder, without the folders for which `enters` returns False.

    It is not recursive, because folders may be nested deeper than Python's recursion limit.
    """
    entered: list[_Entered] = []
    pending: str | None = ""
    while True:
        if pending is not None:
            prefix, pending = pending, None
            try:
                folder = _enter(root, prefix)
            except OSError as error:
                yield FoundFile(prefix.rstrip("/"), SourceError(f"the folder cannot be read ({error.strerror})"))
            else:
                # Skips a folder inside itself, through a link; links to a folder elsewhere in the tree are followed.
                if all(folder.identity != above.identity for above in entered):
                    entered.append(folder)
        if not entered:
            return
        name, is_folder = next(entered[-1].entries, (None, False))
        if name is None:
            entered.pop()
        elif not is_folder:
            yield FoundFile(entered[-1].prefix + name)
        elif not is_hidden(name) and (enters is None or enters(entered[-1].prefix + name)):
            pending = f"{entered[-1].prefix}{name}/"


def _enter(root: str, prefix: str) -> _Entered:
    path = os.path.join(root, prefix)
    status = os.stat(path)
    with os.scandir(path) as entries:
        listing = sorted((entry.name, _is_folder(entry)) for entry in entries)
    return _Entered(prefix, (status.st_dev, status.st_ino), iter(listing))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; an error is reported when it is read as an image
        return False
