"""Image files in a tar archive, plain or gzip-compressed, read from front to back in constant memory.

Members that follow one another and differ only in their suffixes belong together, as in WebDataset's shards: `7.cls`
names the class of `7.jpg`, `7.json` is its payload (a `label` in it its class), `7.txt` becomes `text` in the payload.

Nothing is ever unpacked to disk, so that an archive's names, links and devices are harmless; what matters here is that
a damaged or malicious archive is neither believed nor able to fill the memory or to hold up the run.
"""

import contextlib
import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Self, cast

from imagekin.errors import InvalidArgumentError
from imagekin.sources.formats.sidecars import SIDECAR_SUFFIXES, Sidecars
from imagekin.sources.labels import FolderLabels
from imagekin.sources.pieces import Piece
from imagekin.sources.places import Place
from imagekin.sources.records import Record, SourceError, is_hidden, is_image_name, printable, record_of, too_large
from imagekin.sources.values import MAX_PAYLOAD_BYTES

# Large enough to make system calls rare, small enough to stay in the processor's cache.
_BUFFER_BYTES = 64 * 1024
# A header that is followed by its own data (long names, pax records) is held in memory whole.
_MAX_HEADER_BYTES = 1024 * 1024
_HEADER_TYPES = frozenset(
    [
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
    ]
)
# Deflate cannot do better than 1032:1, so this bounds what a compressed archive can hold.
_MAX_RATIO = 1040
# Past the end marker lies padding; reading it makes gzip check its checksum.
_MAX_PADDING_BYTES = 64 * 1024 * 1024
# Images of one name that are kept until what belongs to them has been read.
_MAX_GROUP = 16
_MAX_GROUP_BYTES = 32 * 2**20
# Members looked at to estimate how many there are.
_SAMPLE = 10_000
# All that the tar and gzip modules raise on damaged input; RecursionError comes of headers that follow headers.
_DAMAGE = (tarfile.TarError, OSError, SourceError, EOFError, zlib.error, ValueError, OverflowError, RecursionError)


class TarSource:
    """The image files of a tar archive in the archive's order.

    Archives that are cut off or damaged yield what lies before the damage, and then one record with an error under the
    archive's own name.

    Args:
        place: the archive; may be a pipe.
        max_bytes: larger members are not read.
        repeatable: whether it can be opened again, as a pipe cannot; folders that all share are then looked for.
    """

    embedded = None

    def __init__(self, place: Place, max_bytes: int, *, repeatable: bool = True) -> None:
        self._place = place
        self._max_bytes = max_bytes
        self._repeatable = repeatable
        self._ignored = 0

    @property
    def ignored(self) -> int:
        """Members that the last reading passed over."""
        return self._ignored

    def __iter__(self) -> Iterator[Record]:
        """Read the records, see `Source`."""
        self._ignored = 0
        label = self._labels()
        group = _Group("")
        last = ""
        try:
            with closing(self._place.open()) as file, _decompressed(file) as stream:
                for archive, member in _members(stream, "r|", _size_bound(file, stream)):
                    last = printable(member.name)
                    key = _key(member)
                    is_image = is_image_name(key.lstrip("/"))
                    if member.isdir() or not (is_image or self._is_sidecar(key)):
                        continue
                    stem = _stem(key)
                    if stem != group.stem or group.full:
                        yield from self._finished(group, label)
                        group = _Group(stem)
                    if is_image:
                        problem = _problem(member, key, self._max_bytes)
                        group.images.append((key, problem or _read(archive, member)))
                    else:
                        group.sidecars.add(key, _sidecar(archive, member, key))
                yield from self._finished(group, label)
                group = _Group("")
                for _ in range(_MAX_PADDING_BYTES // _BUFFER_BYTES):
                    if not stream.read(_BUFFER_BYTES):
                        break
        except _DAMAGE as error:
            yield from self._finished(group, label)
            where = f"at or after {last}" if last else "at its beginning"
            yield record_of(self._place.name, SourceError(f"the archive is cut off or damaged {where} ({error})"))

    def pieces(self) -> Iterator[Piece]:
        """Yield the archive whole, see `imagekin.sources.pieces`.

        Raises:
            InvalidArgumentError: it is a pipe, which nobody else can read.
        """
        if not self._repeatable:
            raise InvalidArgumentError(
                f"{self._place.shown} is a pipe, which other processes cannot read: write it to a file", field="source"
            )
        yield self

    def count(self) -> int | None:
        """Return how many records there are, estimated for large archives; None for compressed ones."""
        if not self._repeatable:
            return None
        try:
            with closing(self._place.open()) as file:
                bound = _size_bound(file, file)
                if bound is None or _is_gzip(file):
                    return None
                return _estimate(file, bound)
        except _DAMAGE:
            return None

    def _labels(self) -> FolderLabels:
        """Return the rule for its folders; reads headers up to the first image in a folder of the top, as a rule."""
        if not self._repeatable:
            return FolderLabels()
        try:
            with closing(self._place.open()) as file, _decompressed(file) as stream:
                mode = "r:" if stream is file and file.seekable() else "r|"
                keys = (_key(member) for _, member in _members(stream, mode, _size_bound(file, stream)))
                return FolderLabels.of(_until_damage(key for key in keys if is_image_name(key.lstrip("/"))))
        except _DAMAGE:
            return FolderLabels()

    def _is_sidecar(self, key: str) -> bool:
        """Return whether a member that is no image belongs to one; count it as passed over if not."""
        relative = key.lstrip("/")
        if not is_hidden(relative) and relative.lower().endswith(SIDECAR_SUFFIXES):
            return True
        self._ignored += 1
        return False

    def _finished(self, group: "_Group", label: FolderLabels) -> Iterator[Record]:
        if not group.images:
            self._ignored += len(group.sidecars)
        for key, data in group.images:
            yield group.sidecars.record(key, data, label(printable(key)))


class _Group:
    """Members that belong together."""

    def __init__(self, stem: str) -> None:
        self.stem = stem
        self.images: list[tuple[str, bytes | str]] = []
        self.sidecars = Sidecars()

    @property
    def full(self) -> bool:
        """True when it has as many members, or bytes, as may be buffered."""
        return len(self.images) + len(self.sidecars) >= _MAX_GROUP or (
            len(self.images) > 1 and sum(len(data) for _, data in self.images) > _MAX_GROUP_BYTES
        )


def read_members(path: Path, wanted: Callable[[str], bool], max_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of the files of an archive whose names are wanted, images or not.

    Args:
        path: the archive.
        wanted: is given the name as it stands in the archive.
        max_bytes: a wanted member of more is refused.

    Raises:
        InvalidArgumentError: the archive is damaged or cut off, or a wanted member is refused.
    """
    try:
        with open(path, "rb") as file, _decompressed(file) as stream:
            for archive, member in _members(stream, "r|", _size_bound(file, stream)):
                if member.isdir() or not wanted(member.name):
                    continue
                problem = _problem(member, _key(member), max_bytes)
                if problem:
                    raise InvalidArgumentError(f"{printable(member.name)} of {path.name}: {problem}", field="source")
                yield member.name, _read(archive, member)
    except _DAMAGE as error:
        raise InvalidArgumentError(f"{path} is cut off or damaged ({error})", field="source") from error


class _Member(tarfile.TarInfo):
    """A member whose header is not taken on trust.

    The base class takes an unreadable header past the first one for the end of the archive, and reads headers' data
    into memory whatever their size.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Make a member from a header block; an error that is no HeaderError ends the reading with that error."""
        if len(buf) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("no end marker")
        if not any(buf):
            return super().frombuf(buf, encoding, errors)  # raises: the end marker
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None
        if member.size < 0 or (member.type in _HEADER_TYPES and member.size > _MAX_HEADER_BYTES):
            raise tarfile.ReadError("impossible size")
        return member


class _Gzip(gzip.GzipFile):
    """A gzip file that returns everything decompressed so far before it raises for damage behind it."""

    def read(self, size: int | None = -1) -> bytes:
        """Read at most `size` bytes, possibly fewer; none at the end."""
        return self.read1(-1 if size is None else size)


def _members(stream: IO[bytes], mode: str, bound: int | None) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of an archive that must not reach further than `bound` bytes."""
    # The stubs know each mode only as a literal.
    with tarfile.open(fileobj=stream, mode=mode, bufsize=_BUFFER_BYTES, tarinfo=_Member) as archive:  # type: ignore[call-overload]
        position = -1
        while (member := archive.next()) is not None:
            archive.members = []  # it remembers every member otherwise
            # A size that no file has would make it skip for ever, a negative one would make it go round in a circle.
            if archive.offset <= position or (bound is not None and archive.offset > bound + tarfile.BLOCKSIZE):
                raise tarfile.ReadError("impossible size")
            position = archive.offset
            yield archive, member


def _key(member: tarfile.TarInfo) -> str:
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    return member.name if member.name.startswith("/") else "/".join(parts)


def _stem(key: str) -> str:
    """Return a path up to the first dot of its last part, as WebDataset groups members."""
    folder, slash, name = key.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"


def _problem(member: tarfile.TarInfo, key: str, max_bytes: int) -> str | None:
    """Return why a member is not read, None when it is."""
    if key.startswith("/") or ".." in key.split("/"):
        return "its name leads out of the archive"
    if not member.isreg() or member.issparse():
        return "it is a link, a device or a sparse file; archive the file itself"
    if member.size < 0:
        return "its size is negative"
    return too_large(member.size, max_bytes)


def _sidecar(archive: tarfile.TarFile, member: tarfile.TarInfo, key: str) -> bytes | str:
    return _problem(member, key, MAX_PAYLOAD_BYTES) or _read(archive, member)


def _until_damage(keys: Iterator[str]) -> Iterator[str]:
    """Yield what lies before the damage."""
    try:
        yield from keys
    except _DAMAGE:
        return


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return the bytes of a member whose header was read last: they follow it, and take no file object of their own."""
    assert archive.fileobj is not None  # noqa: S101  it is open
    data = archive.fileobj.read(member.size)
    if len(data) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _estimate(file: IO[bytes], bound: int) -> int:
    """Count the records of a plain archive by its headers; after many of them, conclude from their share of it."""
    images = 0
    for seen, (archive, member) in enumerate(_members(file, "r:", bound), start=1):
        images += not member.isdir() and is_image_name(_key(member).lstrip("/"))
        if seen == _SAMPLE:
            return max(images, images * bound // archive.offset)
    return images


def _is_gzip(file: IO[bytes]) -> bool:
    """Return whether the file begins as gzip does; leaves the file at its beginning."""
    return cast("bytes", file.peek(2)).startswith(b"\x1f\x8b")  # type: ignore[attr-defined]


def _decompressed(file: IO[bytes]) -> contextlib.AbstractContextManager[IO[bytes]]:
    if _is_gzip(file):
        return cast("contextlib.AbstractContextManager[IO[bytes]]", _Gzip(fileobj=file, mode="rb"))
    return contextlib.nullcontext(file)


def _size_bound(file: IO[bytes], stream: IO[bytes]) -> int | None:
    """Return how many bytes the archive can hold at most, None when it is read from a pipe."""
    if not file.seekable():
        return None
    here = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(here)
    if not size:
        return None
    return size if stream is file else size * _MAX_RATIO
