"""Open files that hold many images, by their first bytes and not only by their names: archives and tables."""

import os
import posixpath
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice

from imagekin.errors import ImageError, InvalidArgumentError
from imagekin.sources.formats import compression
from imagekin.sources.formats import zip as zip_archives
from imagekin.sources.formats.file_list import FilesReader, Listing
from imagekin.sources.formats.labelling import is_table_name, labelling_tables, listed_in
from imagekin.sources.formats.manifest import ManifestReader
from imagekin.sources.formats.split_lists import is_split_list
from imagekin.sources.formats.tar import TarReader
from imagekin.sources.formats.tar_members import BLOCK_BYTES, is_tar
from imagekin.sources.ignored import (
    NO_IMAGE,
    NO_IMAGES_IN_IT,
    NO_READER,
    UNPACKED,
    Ignored,
    Kind,
    in_system_folder,
    is_hidden,
    is_image_name,
    suffix_of,
)
from imagekin.sources.joined import Part
from imagekin.sources.pieces import Naming, Piece, Reader, Surveyed
from imagekin.sources.places import LocalPlace, Place
from imagekin.sources.records import Record, SourceError, VectorInfo, record_of
from imagekin.sources.splits import Split
from imagekin.sources.suffixes import (
    ARCHIVE_SUFFIXES,
    LIST_SUFFIX,
    MANIFEST_SUFFIXES,
    PARQUET_SUFFIXES,
    TAR_SUFFIXES,
    ZIP_SUFFIXES,
    splits_of_files,
    stem_of,
)

_SPREADSHEETS = (".xlsx", ".xls", ".ods")
_PARQUET_MAGIC = b"PAR1"  # files of Arrow are known by their names
_OTHER_ARCHIVES = {b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!\x1a\x07": "a RAR archive"}


def open_container(
    place: Place, max_bytes: int, label_column: str | None = None, *, repeatable: bool = True
) -> Reader | None:
    """Return the reader of an archive or a table; None for another file.

    Args:
        place: the file.
        max_bytes: larger images are not read.
        label_column: the tables' column of labels, if the user named it; None to find it.
        repeatable: False for a file that can be opened only once, such as a pipe; its name says what it is.

    Raises:
        InvalidArgumentError: it is an archive of a kind that is not read, or a pipe of one that cannot be.
    """
    name = place.name.lower()
    head = _head(place) if repeatable and not name.endswith((*MANIFEST_SUFFIXES, LIST_SUFFIX)) else b""
    for magic, kind in _OTHER_ARCHIVES.items():
        if head.startswith(magic):
            raise InvalidArgumentError(f"{place.shown} is {kind}, which is not read: unpack it", field="source")
    if name.endswith(_SPREADSHEETS):
        raise InvalidArgumentError(f"{place.shown} is a spreadsheet: save it as .csv", field="source")
    if head.startswith(zip_archives.MAGIC):
        return zip_archives.ZipReader(place, max_bytes, label_column)
    if head.startswith(_PARQUET_MAGIC):
        return _parquet(place, max_bytes, label_column)
    if is_tar(head) or (compression.compression_of(head) is not None and not name.endswith(PARQUET_SUFFIXES)):
        return TarReader(place, max_bytes)
    if name.endswith((*MANIFEST_SUFFIXES, LIST_SUFFIX)):
        return ManifestReader(place, max_bytes, label_column)
    if name.endswith(TAR_SUFFIXES):
        return TarReader(place, max_bytes, repeatable=repeatable)
    if name.endswith(ZIP_SUFFIXES):
        if not repeatable:
            raise InvalidArgumentError(f"{place.shown} is a pipe; a zip archive is read from its end", field="source")
        return zip_archives.ZipReader(place, max_bytes, label_column)
    return _parquet(place, max_bytes, label_column) if name.endswith(PARQUET_SUFFIXES) else None


def part_of(reader: Reader, file: str, name: str, split: Split | None = None) -> Part:
    """Return a container's part of a source.

    Args:
        reader: its reader.
        file: the file's name.
        name: its path below the source's root; empty when it is itself the source.
        split: the split that its name states.
    """
    folder = posixpath.dirname(name)
    inside = f"{folder}/" if folder else ""
    if isinstance(reader, ManifestReader):  # its paths are those of files beside it
        return Part(reader, inside, inside, split)
    if isinstance(reader, (TarReader, zip_archives.ZipReader)):  # the only archive is a folder like any other
        return Part(reader, f"{name}/" if name else "", inside, split)
    return Part(reader, f"{name or file}/", inside, split)


def listed_parts(
    listing: Listing,
    place_of: Callable[[str], Place],
    max_bytes: int,
    label_column: str | None = None,
    *,
    key: str = "",
    path: str = "",
) -> list[Part]:
    """Return the parts of a folder, a pattern or a URL: its images, and each archive and table among its files.

    Args:
        listing: lists the files.
        place_of: returns the place of a listed path.
        max_bytes: larger images are not read.
        label_column: as for `open_container`.
        key: prefix of all keys.
        path: prefix of all paths for the rule of labels.
    """
    containers: list[str] = []
    has_images = False
    for found in listing():
        if isinstance(found, Record) or is_image_name(found):
            has_images = True
        elif _has_container_name(found):
            containers.append(found)

    def table(name: str) -> ManifestReader:
        return ManifestReader(place_of(name), max_bytes, label_column)

    tables = labelling_tables(containers, table) if has_images else {}
    opened: dict[str, tuple[Kind | None, Reader | None]] = {}
    for name in sorted(containers, key=is_table_name):
        if is_table_name(name) and has_images:
            reason = NO_IMAGE if is_split_list(name) else NO_IMAGES_IN_IT
            opened[name] = tables.get(name, (Kind(suffix_of(name), reason), None))
        else:
            # Beside archives, tables are mostly about what is in these.
            has_readers = any(reader is not None for _, reader in opened.values())
            is_beside = is_split_list(name) or (is_table_name(name) and has_readers)
            opened[name] = _opened(place_of(name), max_bytes, label_column, is_beside=is_beside)
    readers = {name: reader for name in containers if (reader := opened[name][1]) is not None}
    elsewhere = {name: None if name in readers else opened[name][0] for name in containers}
    infos = [reader.embedded for reader in readers.values()]
    has_images = has_images or None in infos
    listed = [(posixpath.dirname(name), one) for name, (_, one) in tables.items() if one is not None]
    files = FilesReader(listing, place_of, max_bytes, elsewhere, partial(listed_in, listed) if listed else None)
    files.embedded = None if has_images else next(iter(infos), None)
    parts = [Part(files, key, path)]
    splits = splits_of_files(list(readers))
    for name, reader in readers.items():
        if has_images and reader.embedded is not None:
            reader = _Refused("it holds vectors; index them by a command of their own")
        part = part_of(reader, name, name, splits.get(name))
        parts.append(Part(part.reader, key + part.key, path + part.path, part.split))
    return parts


class _Refused:
    """A file that is not read, and reported.

    Args:
        reason: why.
    """

    embedded: VectorInfo | None = None

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def survey(self, *, whole: bool = False) -> Iterator[Surveyed]:
        """Yield nothing, see `Reader`."""
        return iter(())

    def pieces(self, naming: Naming, ignored: Ignored) -> Iterator[Piece]:
        """Yield the error, see `Reader`."""
        yield (record_of(naming.key.rstrip("/"), ImageError(self._reason)),)

    def count(self) -> int:
        """Return 1."""
        return 1


def _opened(
    place: Place, max_bytes: int, label_column: str | None, *, is_beside: bool
) -> tuple[Kind | None, Reader | None]:
    """Open a container of a folder; return its reader, or the kind as which it is ignored.

    Args:
        place: the file.
        max_bytes: larger images are not read.
        label_column: as for `open_container`.
        is_beside: whether it is read only when it lists files: a list, or a table beside archives.
    """
    suffix = suffix_of(place.name)
    try:
        reader = open_container(place, max_bytes, label_column)
    except InvalidArgumentError:
        return Kind(suffix, NO_READER), None
    if isinstance(reader, (TarReader, zip_archives.ZipReader)) and _is_unpacked(reader):
        return Kind(suffix, UNPACKED), None
    if isinstance(reader, ManifestReader) and is_beside and not reader.labels_files_beside_it():
        return Kind(suffix, NO_IMAGES_IN_IT), None
    if getattr(reader, "has_no_images", False):
        return Kind(suffix, NO_IMAGES_IN_IT), None
    return Kind(suffix, NO_IMAGES_IN_IT), reader


def _is_unpacked(archive: TarReader | zip_archives.ZipReader) -> bool:
    """Return whether an archive's first images lie beside it as files, so that it would be read twice."""
    if not isinstance(archive.place, LocalPlace):
        return False
    folder = os.path.dirname(archive.place.path)
    stem = os.path.join(folder, stem_of(archive.place.name))
    first = [path for path in islice(archive.survey(), 3) if isinstance(path, str) and not path.startswith("/")]
    return bool(first) and any(
        all(os.path.isfile(os.path.join(root, path)) for path in first if ".." not in path) for root in (folder, stem)
    )


def _has_container_name(path: str) -> bool:
    name = path.lower()
    return (name.endswith((*ARCHIVE_SUFFIXES, *PARQUET_SUFFIXES)) or is_table_name(path)) and not (
        is_hidden(path) or in_system_folder(path)
    )


def _parquet(place: Place, max_bytes: int, label_column: str | None) -> Reader:
    from imagekin.sources.formats.parquet import ParquetReader  # loads Arrow

    return ParquetReader(place, max_bytes, label_column)


def _head(place: Place) -> bytes:
    """Return the first bytes of a file; none when it cannot be read, which its reader reports."""
    try:
        with closing(place.open()) as file:
            return file.read(BLOCK_BYTES)
    except (OSError, SourceError, ValueError):
        return b""
