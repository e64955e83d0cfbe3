"""Image files in a tar archive, plain or gzip-compressed, read from front to back in constant memory.

Nothing is ever unpacked to disk, so that an archive's names, links and devices are harmless; what matters here is that
a damaged or malicious archive is neither believed nor able to fill the memory or to hold up the run.
"""

import contextlib
import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self, cast

from sources.records import Record, is_image_name, printable, record_of, too_large

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
# Members looked at to estimate how many there are.
_SAMPLE = 10_000
# All that the tar and gzip modules raise on damaged input; RecursionError comes of headers that follow headers.
_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, OverflowError, RecursionError)


class TarSource:
    """The image files of a tar archive in the archive's order.

    Archives that are cut off or damaged yield what lies before the damage, and then one record with an error under the
    archive's own name.

    Args:
        path: the archive; may be a pipe.
        max_bytes: larger members are not read.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._ignored = 0

    @property
    def ignored(self) -> int:
        """Members that the last reading passed over."""
        return self._ignored

    def __iter__(self) -> Iterator[Record]:
        """Read the records, see `Source`."""
        self._ignored = 0
        last = ""
        try:
            with open(self._path, "rb") as file, _decompressed(file) as stream:
                for archive, member in _members(stream, "r|", _size_bound(file, stream)):
                    last = printable(member.name)
                    yield from self._records(archive, member)
                for _ in range(_MAX_PADDING_BYTES // _BUFFER_BYTES):
                    if not stream.read(_BUFFER_BYTES):
                        break
        except _DAMAGE as error:
            where = f"at or after {last}" if last else "at its beginning"
            yield record_of(self._path.name, f"the archive is cut off or damaged {where} ({error})")

    def count(self) -> int | None:
        """Return how many records there are, estimated for large archives; None for compressed ones."""
        try:
            with open(self._path, "rb") as file:
                bound = _size_bound(file, file)
                if bound is None or _is_gzip(file):
                    return None
                return _estimate(file, bound)
        except _DAMAGE:
            return None

    def _records(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[Record]:
        if member.isdir():
            return
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if not is_image_name("/".join(parts)):
            self._ignored += 1
            return
        key = member.name if member.name.startswith("/") else "/".join(parts)
        yield record_of(key, _problem(member, parts, self._max_bytes) or _read(archive, member))


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
    """Hands out what it has decompressed before it says that the rest is damaged."""

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


def _problem(member: tarfile.TarInfo, parts: list[str], max_bytes: int) -> str | None:
    """Return why a member is not read, None when it is."""
    if member.name.startswith("/") or ".." in parts:
        return "its name leads out of the archive"
    if not member.isreg() or member.issparse():
        return "it is a link, a device or a sparse file; archive the file itself"
    if member.size < 0:
        return "its size is negative"
    return too_large(member.size, max_bytes)


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise tarfile.ReadError(f"{printable(member.name)} has no data")
    with file:
        return file.read()


def _estimate(file: IO[bytes], bound: int) -> int:
    """Count the records of a plain archive by its headers; after many of them, conclude from their share of it."""
    images = 0
    for seen, (archive, member) in enumerate(_members(file, "r:", bound), start=1):
        images += not member.isdir() and is_image_name(member.name.lstrip("/"))
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
    size = os.fstat(file.fileno()).st_size if file.seekable() else 0
    if not size:
        return None
    return size if stream is file else size * _MAX_RATIO
