"""Opens what a user names as a source of images: a folder, a tar archive or an image file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from encoder.errors import InvalidArgumentError, NotFoundError
from encoder.images import DecodeLimits
from sources.folders import FileSource, FolderSource
from sources.records import Record, Source, is_image_name, printable
from sources.tars import TarSource

__all__ = ["Record", "Source", "count_records", "open_source", "open_sources"]

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def open_source(path: Path, limits: DecodeLimits | None = None) -> Source:
    """Open a source of images. Nothing is read before the records are asked for.

    Args:
        path: a folder, which is searched with all folders below it; a .tar, .tar.gz or .tgz archive; or an image file.
        limits: files of more bytes than `max_bytes` are not read, and become records with an error.

    Raises:
        NotFoundError: there is no such file or folder.
        InvalidArgumentError: it is none of these.
    """
    path = Path(path)
    max_bytes = (limits or DecodeLimits()).max_bytes
    shown = printable(str(path))
    if not path.exists():
        raise NotFoundError(f"no file or folder {shown}", field="source")
    if path.is_dir():
        return FolderSource(path, max_bytes)
    if path.name.lower().endswith(_TAR_SUFFIXES):
        return TarSource(path, max_bytes)
    if is_image_name(path.name.lstrip(".")):
        return FileSource(path, max_bytes)
    raise InvalidArgumentError(
        f"{shown} is no folder, no .tar, .tar.gz or .tgz archive and no image by its name", field="source"
    )


def open_sources(paths: Sequence[Path], limits: DecodeLimits | None = None) -> Source:
    """Open several sources as one, read one after the other; arguments and errors as for `open_source`."""
    return _Joined([open_source(path, limits) for path in paths])


def count_records(path: Path) -> int | None:
    """Return about how many records a source has, without reading the images; None when that cannot be known cheaply.

    Raises:
        NotFoundError: there is no such file or folder.
        InvalidArgumentError: it is no source.
    """
    return open_source(path).count()


class _Joined:
    """Several sources, one after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    @property
    def ignored(self) -> int:
        return sum(source.ignored for source in self._sources)

    def __iter__(self) -> Iterator[Record]:
        for source in self._sources:
            yield from source

    def count(self) -> int | None:
        counts = [source.count() for source in self._sources]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None
