"""Open a user's source: a folder, an archive, a table, a list, a pattern, a URL or an image file."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import partial

from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.errors import InvalidArgumentError, NotFoundError
from imagekin.sources.formats.file_list import FilesSource, ListSource
from imagekin.sources.formats.folder import FileSource, FolderSource
from imagekin.sources.formats.manifest import MANIFEST_SUFFIXES, ManifestSource
from imagekin.sources.formats.tar import TarSource
from imagekin.sources.patterns import fixed_part, has_wildcard, local_listing
from imagekin.sources.pieces import Piece, pieces_of
from imagekin.sources.places import LocalPlace, Place, RemotePlace
from imagekin.sources.records import Record, Source, VectorInfo, is_image_name, printable
from imagekin.sources.remote import remote_listing

__all__ = ["Record", "Source", "count_records", "open_source", "open_sources"]

_STANDARD_INPUT = "-"
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
PARQUET_SUFFIXES = (".parquet", ".pq")


def open_source(path: str | os.PathLike[str], limits: DecodeLimits | None = None) -> Source:
    """Open a source; images are read when it is iterated.

    Args:
        path: a folder, which is searched recursively; a .tar, .tar.gz or .tgz archive; a .parquet file of images or
            vectors; a .csv, .tsv or .jsonl manifest; an image file; a pattern such as `shards/*.tar`; `-` for a list
            of images on standard input; or the s3://, gs:// or http(s):// URL of any of these.
        limits: files of more bytes than `max_bytes` are not read, and become records with an error.

    Raises:
        NotFoundError: there is no such file or folder.
        InvalidArgumentError: it is none of these.
        FailedPreconditionError: a required package is not installed.
    """
    path = os.fspath(path)
    max_bytes = (limits or DecodeLimits()).max_bytes
    if path == _STANDARD_INPUT:
        return ListSource(max_bytes)
    if "://" in path:
        return _open_url(path, max_bytes)
    if not os.path.lexists(path) and has_wildcard(path):
        root, parts = fixed_part(path)
        if not os.path.isdir(root):
            raise NotFoundError(f"no folder {printable(root)}", field="source")
        place = partial(_below, root)
        return FilesSource(local_listing(root, parts), place, max_bytes, partial(open_file, max_bytes=max_bytes))
    if not os.path.exists(path):
        raise NotFoundError(f"no file or folder {printable(path)}", field="source")
    if os.path.isdir(path):
        return FolderSource(path, max_bytes)
    return open_file(LocalPlace(path), max_bytes, repeatable=os.path.isfile(path))


def open_sources(paths: Sequence[str | os.PathLike[str]], limits: DecodeLimits | None = None) -> Source:
    """Open several sources as one that reads them in order; arguments and errors as for `open_source`.

    Raises:
        InvalidArgumentError: some hold images and some vectors, or vectors of different spaces or sizes.
    """
    return _JoinedSources([open_source(path, limits) for path in paths])


def count_records(path: str | os.PathLike[str]) -> int | None:
    """Estimate the number of records of a source without reading the images; None if that is not possible cheaply.

    Raises:
        NotFoundError: there is no such file or folder.
        InvalidArgumentError: it is no source.
    """
    return open_source(path).count()


def open_file(place: Place, max_bytes: int, *, repeatable: bool = True) -> Source:
    """Open one file by the suffix of its name.

    Args:
        place: the file.
        max_bytes: larger images are not read.
        repeatable: False for a file that can be opened only once, such as a pipe.

    Raises:
        InvalidArgumentError: it is no source.
    """
    name = place.name.lower()
    if name.endswith(TAR_SUFFIXES):
        return TarSource(place, max_bytes, repeatable=repeatable)
    if name.endswith(PARQUET_SUFFIXES):
        from imagekin.sources.formats.parquet import ParquetSource  # loads Arrow

        return ParquetSource(place, max_bytes)
    if name.endswith(MANIFEST_SUFFIXES):
        return ManifestSource(place, max_bytes)
    if is_image_name(name.lstrip(".")):
        return FileSource(place, max_bytes)
    raise InvalidArgumentError(
        f"{place.shown} is no folder, no .tar, .tar.gz or .tgz archive, no .parquet, .csv or .jsonl table and no image"
        " by its name",
        field="source",
    )


def _open_url(url: str, max_bytes: int) -> Source:
    place = RemotePlace(url)
    if url.lower().startswith("http"):  # HTTP cannot list files, and "?" begins a query
        return open_file(place, max_bytes)
    if not has_wildcard(url):
        with contextlib.suppress(InvalidArgumentError):  # raised for a folder
            return open_file(place, max_bytes)
    listing, place_of = remote_listing(url)
    opener = partial(open_file, max_bytes=max_bytes) if has_wildcard(url) else None
    return FilesSource(listing, place_of, max_bytes, opener)


def _below(root: str, name: str) -> Place:
    return LocalPlace(os.path.join(root, name))


class _JoinedSources:
    """Several sources, read in order."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        kinds = {source.embedded for source in sources}
        if len({kind and kind.dim for kind in kinds}) > 1 or len({kind.space for kind in kinds if kind}) > 1:
            raise InvalidArgumentError(
                "give either images or vectors, and only vectors of one space and size: use a command for each",
                field="source",
            )
        self.embedded: VectorInfo | None = next(iter(kinds), None)

    @property
    def ignored(self) -> int:
        return sum(source.ignored for source in self._sources)

    def __iter__(self) -> Iterator[Record]:
        for source in self._sources:
            yield from source

    def pieces(self) -> Iterator[Piece]:
        for source in self._sources:
            yield from pieces_of(source)

    def count(self) -> int | None:
        counts = [source.count() for source in self._sources]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None
