"""Read the image files of a tar archive, plain or gzip-compressed, sequentially in constant memory.

Consecutive members that differ only in their suffixes belong together, as in WebDataset's shards: `7.cls` is the class
of `7.jpg`, `7.json` its payload (and `label` in it its class), and `7.txt` becomes `text` in the payload.

Nothing is unpacked to disk, so an archive's names, links and devices are harmless. Headers are not trusted: a damaged
or malicious archive can neither fill the memory nor block the run.
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
from imagekin.sources.records import Record, SourceError, is_hidden, is_image_name, printable, record_of, size_problem
from imagekin.sources.values import MAX_PAYLOAD_BYTES

# Large enough to make system calls rare, small enough to stay in the processor's cache.
_BUFFER_BYTES = 64 * 1024
# Headers with data of their own (long names, pax records) are read into memory completely.
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
# Deflate compresses at most 1032:1, which bounds the size of a compressed archive's contents.
_MAX_RATIO = 1040
# After the end marker is padding, which is read so that gzip verifies its checksum.
_MAX_PADDING_BYTES = 64 * 1024 * 1024
# Members of a group that are buffered until all of its sidecars have been read.
_MAX_GROUP = 16
_MAX_GROUP_BYTES = 32 * 2**20
# Members that are read to estimate their total number.
_SAMPLE = 10_000
# Exceptions of the tar and gzip modules on damaged input; RecursionError is due to long sequences of headers.
_DAMAGE = (tarfile.TarError, OSError, SourceError, EOFError, zlib.error, ValueError, OverflowError, RecursionError)


class TarSource:
    """The image files of a tar archive, in the archive's order.

    A truncated or damaged archive yields the records before the damage, and then one record with an error, whose key is
    the archive's name.

    Args:
        place: the archive, or a pipe.
        max_bytes: larger members are not read.
        repeatable: False for a pipe, which cannot be opened again; labels then include folders common to all images.
    """

    embedded = None

    def __init__(self, place: Place, max_bytes: int, *, repeatable: bool = True) -> None:
        self._place = place
        self._max_bytes = max_bytes
        self._repeatable = repeatable
        self._ignored = 0

    @property
    def ignored(self) -> int:
        """Number of members that the last iteration ignored."""
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
                        yield from self._group_records(group, label)
                        group = _Group(stem)
                    if is_image:
                        problem = _problem(member, key, self._max_bytes)
                        group.images.append((key, problem or _read(archive, member)))
                    else:
                        group.sidecars.add(key, _sidecar(archive, member, key))
                yield from self._group_records(group, label)
                group = _Group("")
                for _ in range(_MAX_PADDING_BYTES // _BUFFER_BYTES):
                    if not stream.read(_BUFFER_BYTES):
                        break
        except _DAMAGE as error:
            yield from self._group_records(group, label)
            where = f"at or after {last}" if last else "at its beginning"
            yield record_of(self._place.name, SourceError(f"the archive is cut off or damaged {where} ({error})"))

    def pieces(self) -> Iterator[Piece]:
        """Yield the archive as one piece, see `imagekin.sources.pieces`.

        Raises:
            InvalidArgumentError: it is a pipe, which other processes cannot read.
        """
        if not self._repeatable:
            raise InvalidArgumentError(
                f"{self._place.shown} is a pipe, which other processes cannot read: write it to a file", field="source"
            )
        yield self

    def count(self) -> int | None:
        """Return the number of records, estimated for large archives; None for compressed ones."""
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
        """Return the rule for labels; usually reads only the headers up to the first image in a top-level folder."""
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
        """Return whether a member that is no image is a sidecar; count it as ignored if not."""
        relative = key.lstrip("/")
        if not is_hidden(relative) and relative.lower().endswith(SIDECAR_SUFFIXES):
            return True
        self._ignored += 1
        return False

    def _group_records(self, group: "_Group", label: FolderLabels) -> Iterator[Record]:
        if not group.images:
            self._ignored += len(group.sidecars)
        for key, data in group.images:
            yield group.sidecars.record(key, data, label(printable(key)))


class _Group:
    """The images and sidecars that belong together."""

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
    """Yield name and bytes of the wanted files of an archive, images or not.

    Args:
        path: the archive.
        wanted: called with a name in the archive; returns whether the file is wanted.
        max_bytes: a larger wanted file is an error.

    Raises:
        InvalidArgumentError: the archive is damaged or truncated, or a wanted file cannot be read.
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
    """A member whose header is checked.

    The base class regards an invalid header after the first one as the end of the archive, and reads headers' data of
    any size into memory.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Make a member from a header block; raises ReadError, which unlike HeaderError is not regarded as the end."""
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
    """Yield the members of an archive, which may extend to at most `bound` bytes."""
    # The stubs know each mode only as a literal.
    with tarfile.open(fileobj=stream, mode=mode, bufsize=_BUFFER_BYTES, tarinfo=_Member) as archive:  # type: ignore[call-overload]
        position = -1
        while (member := archive.next()) is not None:
            archive.members = []  # or it would keep every member
            # A huge size would make it skip endlessly, and a negative one read the same member again.
            if archive.offset <= position or (bound is not None and archive.offset > bound + tarfile.BLOCKSIZE):
                raise tarfile.ReadError("impossible size")
            position = archive.offset
            yield archive, member


def _key(member: tarfile.TarInfo) -> str:
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    return member.name if member.name.startswith("/") else "/".join(parts)


def _stem(key: str) -> str:
    """Return a path up to the first dot of its last part, by which WebDataset groups members."""
    folder, slash, name = key.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"


def _problem(member: tarfile.TarInfo, key: str, max_bytes: int) -> str | None:
    """Return the reason why a member is not read; None when it is."""
    if key.startswith("/") or ".." in key.split("/"):
        return "its name leads out of the archive"
    if not member.isreg() or member.issparse():
        return "it is a link, a device or a sparse file; archive the file itself"
    if member.size < 0:
        return "its size is negative"
    return size_problem(member.size, max_bytes)


def _sidecar(archive: tarfile.TarFile, member: tarfile.TarInfo, key: str) -> bytes | str:
    return _problem(member, key, MAX_PAYLOAD_BYTES) or _read(archive, member)


def _until_damage(keys: Iterator[str]) -> Iterator[str]:
    """Yield the keys before the damage."""
    try:
        yield from keys
    except _DAMAGE:
        return


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Read the bytes of the member whose header was read last, which follow directly."""
    assert archive.fileobj is not None  # noqa: S101  it is open
    data = archive.fileobj.read(member.size)
    if len(data) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _estimate(file: IO[bytes], bound: int) -> int:
    """Count the records of a plain archive by its headers; extrapolate after the first 10,000."""
    images = 0
    for seen, (archive, member) in enumerate(_members(file, "r:", bound), start=1):
        images += not member.isdir() and is_image_name(_key(member).lstrip("/"))
        if seen == _SAMPLE:
            return max(images, images * bound // archive.offset)
    return images


def _is_gzip(file: IO[bytes]) -> bool:
    """Return whether the file has gzip's signature, without changing its position."""
    return cast("bytes", file.peek(2)).startswith(b"\x1f\x8b")  # type: ignore[attr-defined]


def _decompressed(file: IO[bytes]) -> contextlib.AbstractContextManager[IO[bytes]]:
    if _is_gzip(file):
        return cast("contextlib.AbstractContextManager[IO[bytes]]", _Gzip(fileobj=file, mode="rb"))
    return contextlib.nullcontext(file)


def _size_bound(file: IO[bytes], stream: IO[bytes]) -> int | None:
    """Return an upper bound of the archive's size in bytes; None for a pipe."""
    if not file.seekable():
        return None
    here = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(here)
    if not size:
        return None
    return size if stream is file else size * _MAX_RATIO
