"""Choose the tables that label the images beside them, in folders and in archives."""

import posixpath
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable

from imagekin.sources.formats.manifest import ManifestReader
from imagekin.sources.formats.names import MANIFEST_SUFFIXES, splits_of_files, stem_of
from imagekin.sources.ignored import SEVERAL_TABLES, SUBMISSION, Kind, suffix_of

# More tables in a folder than this are of single images, such as those of Google Photos.
_MAX_TABLES = 20


def labelling_tables(
    names: Collection[str], reader_of: Callable[[str], ManifestReader]
) -> dict[str, tuple[Kind | None, ManifestReader | None]]:
    """Return the tables that list images beside them: the reader of each, or the kind as which it is not used.

    In a folder, `metadata.*` goes before others; several tables are used when they are of different splits or list
    different images.

    Args:
        names: paths of files, of which the tables are looked at.
        reader_of: returns the reader of a table.
    """
    found: dict[str, dict[str, ManifestReader]] = {}
    chosen: dict[str, tuple[Kind | None, ManifestReader | None]] = {}
    tables_in = Counter(posixpath.dirname(name) for name in names if is_table_name(name))
    for name in names:
        if is_table_name(name) and tables_in[posixpath.dirname(name)] <= _MAX_TABLES:
            reader = reader_of(name)
            if not reader.labels_files_beside_it():
                continue
            if "submission" in posixpath.basename(name).lower():
                chosen[name] = (Kind(suffix_of(name), SUBMISSION), None)
            else:
                found.setdefault(posixpath.dirname(name), {})[name] = reader
    for tables in found.values():
        used = _used(tables)
        for name, reader in tables.items():
            chosen[name] = (None, reader) if name in used else (Kind(suffix_of(name), SEVERAL_TABLES), None)
    return chosen


def _used(tables: dict[str, ManifestReader]) -> Collection[str]:
    """Return the names of those of a folder's tables that are used."""
    if known := [name for name in tables if stem_of(posixpath.basename(name)).lower() == "metadata"]:
        return known[:1]
    if len(tables) == 1 or len(splits_of_files(list(tables))) == len(tables):
        return tables
    listed = [{hash(path) for path in reader.paths()} for reader in tables.values()]
    return tables if len(set().union(*listed)) == sum(map(len, listed)) else ()


def listed_in(tables: Iterable[tuple[str, ManifestReader]]) -> Container[str]:
    """Return the images that tables, each in a folder of the source, list: paths below the source's root."""
    # Hashes, because there may be millions of paths.
    found = {hash(posixpath.normpath(posixpath.join(folder, path))) for folder, one in tables for path in one.paths()}
    return _Hashed(found)


class _Hashed:
    """A set of paths, by their hashes.

    Args:
        hashes: the hashes.
    """

    def __init__(self, hashes: set[int]) -> None:
        self._hashes = hashes

    def __contains__(self, path: object) -> bool:
        return hash(path) in self._hashes


def is_table_name(name: str) -> bool:
    """Return whether a file is a table by its name."""
    return name.lower().endswith(MANIFEST_SUFFIXES)
