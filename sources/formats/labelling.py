"""Choose the tables that label the images beside them, in folders and in archives."""

import posixpath
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping

from imagekin.sources.formats.manifest import ManifestReader
from imagekin.sources.formats.split_lists import is_split_list, likely_lists
from imagekin.sources.ignored import MISSING_IMAGES, SEVERAL_TABLES, SUBMISSION, Kind, suffix_of
from imagekin.sources.suffixes import MANIFEST_SUFFIXES, splits_of_files, stem_of

# More tables in a folder than this are of single images, such as those of Google Photos.
_MAX_TABLES = 20


def labelling_tables(
    names: Collection[str], reader_of: Callable[[str], ManifestReader]
) -> dict[str, tuple[Kind | None, ManifestReader | None]]:
    """Return the tables that list images beside them: the reader of each, or the kind as which it is not used.

    In a folder, `metadata.*` goes before others; several tables are used when they are of different splits or list
    different images. Lists of splits are used when no table is, and no image is on two of them.

    Args:
        names: paths of files, of which the tables are looked at.
        reader_of: returns the reader of a table.
    """
    found: dict[str, dict[str, ManifestReader]] = {}
    chosen: dict[str, tuple[Kind | None, ManifestReader | None]] = {}
    tables_in = Counter(posixpath.dirname(name) for name in names if is_table_name(name))
    lists: dict[str, ManifestReader] = {}
    for name in (*(name for name in names if not is_split_list(name)), *_likely_lists(names)):
        if is_table_name(name) and tables_in[posixpath.dirname(name)] <= _MAX_TABLES:
            reader = reader_of(name)
            if not reader.labels_files_beside_it():
                if reader.names_images:
                    chosen[name] = (Kind(suffix_of(name), MISSING_IMAGES), None)
                continue
            if is_split_list(name):
                lists[name] = reader
            elif "submission" in posixpath.basename(name).lower():
                chosen[name] = (Kind(suffix_of(name), SUBMISSION), None)
            else:
                found.setdefault(posixpath.dirname(name), {})[name] = reader
    for tables in found.values():
        used = _used(tables)
        for name, reader in tables.items():
            chosen[name] = (None, reader) if name in used else (Kind(suffix_of(name), SEVERAL_TABLES), None)
    use_lists = not found and _are_apart(lists)
    for name, reader in lists.items():
        chosen[name] = (None, reader) if use_lists else (Kind(suffix_of(name), SEVERAL_TABLES), None)
    return chosen


def _likely_lists(names: Collection[str]) -> list[str]:
    """Return the lists of splits to look at, of each folder."""
    inside: dict[str, list[str]] = {}
    for name in filter(is_split_list, names):
        inside.setdefault(posixpath.dirname(name), []).append(name)
    return [name for some in inside.values() for name in likely_lists(some)]


def _used(tables: dict[str, ManifestReader]) -> Collection[str]:
    """Return the names of those of a folder's tables that are used."""
    if known := [name for name in tables if stem_of(posixpath.basename(name)).lower() == "metadata"]:
        return known[:1]
    if len(tables) == 1 or len(splits_of_files(list(tables))) == len(tables):
        return tables
    return tables if _are_apart(tables) else ()


def _are_apart(tables: Mapping[str, ManifestReader]) -> bool:
    """Return whether no image is listed by two tables, given by their names."""
    listed = [
        {hash(posixpath.normpath(posixpath.join(posixpath.dirname(name), path))) for path in reader.paths()}
        for name, reader in tables.items()
    ]
    return len(set().union(*listed)) == sum(map(len, listed))


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
    """Return whether a file is a table, or a list of a split, by its name."""
    return name.lower().endswith(MANIFEST_SUFFIXES) or is_split_list(name)
