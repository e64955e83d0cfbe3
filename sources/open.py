"""Open a user's sources: folders, archives, tables, lists, patterns, URLs and image files.

Several sources are read as if the folder that holds them all had been named: each has its name in keys and labels.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from urllib.parse import urlsplit

from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.encoder.decoding.formats import MISSING_EXTRAS
from imagekin.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from imagekin.sources.containers import listed_parts, open_container, part_of
from imagekin.sources.formats.file_list import FilesReader, ListReader, below
from imagekin.sources.formats.folder import folder_listing
from imagekin.sources.formats.manifest import ManifestReader
from imagekin.sources.ignored import is_image_name
from imagekin.sources.joined import JoinedReaders, Part
from imagekin.sources.labels import FOLDER, LabelRule
from imagekin.sources.patterns import fixed_part, has_wildcard, local_listing
from imagekin.sources.places import LocalPlace, Place, RemotePlace, is_url
from imagekin.sources.records import Record, Source, printable
from imagekin.sources.remote import remote_listing
from imagekin.sources.suffixes import splits_of_files
from imagekin.version import install_command

__all__ = ["JoinedReaders", "Record", "Source", "count_records", "open_source", "open_sources"]

_STANDARD_INPUT = "-"


def open_source(
    path: str | os.PathLike[str], limits: DecodeLimits | None = None, label_from: str = FOLDER
) -> JoinedReaders:
    """Open a source; images are read when it is iterated.

    Args:
        path: a folder, which is searched recursively; a tar or zip archive; a .parquet or .arrow file of images or
            vectors; a .csv, .tsv or .jsonl manifest; a .txt list; an image file; a pattern such as `shards/*.tar`; `-`
            for a list of images on standard input; or the s3://, gs:// or http(s):// URL of any of these.
        limits: files of more bytes than `max_bytes` are not read, and become records with an error.
        label_from: how paths name labels, see `LabelRule`.

    Raises:
        NotFoundError: there is no such file or folder.
        InvalidArgumentError: it is none of these.
        FailedPreconditionError: a required package is not installed.
    """
    return open_sources([path], limits, label_from)


def open_sources(
    paths: Sequence[str | os.PathLike[str]], limits: DecodeLimits | None = None, label_from: str = FOLDER
) -> JoinedReaders:
    """Open several sources as one that reads them in order; arguments and errors as for `open_source`.

    Raises:
        InvalidArgumentError: some hold images and some vectors, or vectors of different spaces or sizes.
    """
    rule = LabelRule(label_from)
    max_bytes = (limits or DecodeLimits()).max_bytes
    given = [os.fspath(path) for path in paths]
    if len(given) == 1:
        return JoinedReaders(_parts(given[0], "", max_bytes, rule.column), rule)
    names = names_below_shared(given)
    # A folder that is given beside files only is no class: its own folders are.
    are_classes = sum(os.path.isdir(path) for path in given) > 1
    splits = splits_of_files(
        [name for path, name in zip(given, names, strict=True) if name and not os.path.isdir(path)]
    )
    parts: list[Part] = []
    for is_image, some in groupby(zip(given, names, strict=True), lambda one: _is_image_file(one[0])):
        if is_image:
            parts.append(Part(_image_files(list(some), max_bytes)))
            continue
        for path, name in some:
            opened = _parts(path, name, max_bytes, rule.column, is_class=are_classes)
            parts += [replace(part, split=splits[name]) for part in opened] if name in splits else opened
    return JoinedReaders(parts, rule)


def count_records(path: str | os.PathLike[str]) -> int | None:
    """Estimate the number of records of a source without reading the images; None if that is not possible cheaply.

    Raises:
        NotFoundError: there is no such file or folder.
        InvalidArgumentError: it is no source.
    """
    return open_source(path).count()


def _parts(path: str, name: str, max_bytes: int, label_column: str | None, *, is_class: bool = False) -> list[Part]:
    """Open one source.

    Args:
        path: what the user named.
        name: its path below the folder that holds all sources; empty when it is the only one.
        max_bytes: larger images are not read.
        label_column: the tables' column of labels, if the user named it.
        is_class: whether a folder's own name is part of its images' paths for the rule of labels.
    """
    if path == _STANDARD_INPUT:
        return [Part(ListReader(max_bytes))]
    inside = f"{name}/" if name else ""
    if "://" in path:
        return _url_parts(path, name, max_bytes, label_column)
    if _is_pattern(path):
        root, parts = fixed_part(path)
        if not os.path.isdir(root):
            raise NotFoundError(f"no folder {printable(root)}", field="source")
        return listed_parts(local_listing(root, parts), partial(below, root), max_bytes, label_column, key=inside)
    if not os.path.exists(path):
        raise NotFoundError(f"no file or folder {printable(path)}", field="source")
    if os.path.isdir(path):
        prefix = inside if is_class else ""
        return listed_parts(
            folder_listing(path), partial(below, path), max_bytes, label_column, key=inside, path=prefix
        )
    return [_file_part(LocalPlace(path), name, max_bytes, label_column, repeatable=os.path.isfile(path))]


def _url_parts(url: str, name: str, max_bytes: int, label_column: str | None) -> list[Part]:
    place = RemotePlace(url)
    if url.lower().startswith("http"):  # HTTP cannot list files, and "?" begins a query
        return [_file_part(place, name, max_bytes, label_column)]
    if not has_wildcard(url):
        with contextlib.suppress(InvalidArgumentError):  # raised for a folder
            return [_file_part(place, name, max_bytes, label_column)]
    listing, place_of = remote_listing(url)
    return listed_parts(listing, place_of, max_bytes, label_column, key=f"{name}/" if name else "")


def _file_part(place: Place, name: str, max_bytes: int, label_column: str | None, *, repeatable: bool = True) -> Part:
    """Open one file.

    Args:
        place: the file.
        name: as for `_parts`.
        max_bytes: larger images are not read.
        label_column: as for `_parts`.
        repeatable: False for a file that can be opened only once, such as a pipe.

    Raises:
        InvalidArgumentError: it is no source.
        FailedPreconditionError: it is an image of a format whose extra is not installed.
    """
    if is_image_name(place.name.lstrip(".")):
        return Part(_image_files([(place, name or place.name)], max_bytes))
    if extra := MISSING_EXTRAS.get(os.path.splitext(place.name)[1].lower()):
        raise FailedPreconditionError(
            f"{place.shown}: reading it needs a package more: {install_command(extra)}", field="source"
        )
    reader = open_container(place, max_bytes, label_column, repeatable=repeatable)
    if reader is None:
        raise InvalidArgumentError(
            f"{place.shown} is no folder, no tar or zip archive, no .parquet, .arrow, .csv or .jsonl table, no .txt"
            " list and no image by its name",
            field="source",
        )
    if repeatable and isinstance(reader, ManifestReader) and reader.is_other_text():
        raise InvalidArgumentError(
            f"{place.shown} is no folder, no archive and no table, and its lines name no images beside it",
            field="source",
        )
    return part_of(reader, place.name, name)


def _image_files(files: list[tuple[str | Place, str]], max_bytes: int) -> FilesReader:
    """Return the reader of image files that were named one by one, by their names below the shared folder."""
    places = {name: LocalPlace(file) if isinstance(file, str) else file for file, name in files}
    return FilesReader(partial(iter, places), places.__getitem__, max_bytes, explicit=True)


def _is_image_file(path: str) -> bool:
    return is_image_name(os.path.basename(path)) and os.path.isfile(path)


def _is_pattern(path: str) -> bool:
    return has_wildcard(path) and not is_url(path) and not os.path.lexists(path)


def names_below_shared(given: Sequence[str]) -> list[str]:
    """Return the paths of sources below the folder that holds them all; empty for that folder itself."""
    whole = [_whole(path) for path in given]
    above = [one if _is_pattern(path) else os.path.dirname(one) for path, one in zip(given, whole, strict=True)]
    known = {one for path, one in zip(given, above, strict=True) if path != _STANDARD_INPUT}
    root = os.path.commonpath(known) if known else "/"
    return [
        os.path.relpath(one, root).removeprefix(".") if path != _STANDARD_INPUT else ""
        for path, one in zip(given, whole, strict=True)
    ]


def _whole(path: str) -> str:
    """Return the absolute path of a file or folder, of a pattern's fixed part, or of a URL as if it were a path."""
    if "://" in path:
        parts = urlsplit(path)
        return os.path.normpath(f"/{parts.netloc.rpartition('@')[2]}/{parts.path}")
    return os.path.abspath(fixed_part(path)[0] if _is_pattern(path) else path)
