"""Iterate over the members of a tar archive from front to back, plain or compressed, without trusting its headers.

Archives that were joined into one file are read one after the other, as `tar --ignore-zeros` does: what follows an
archive's end is padding or another archive, and anything else is damage.
"""

import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Self, cast

from imagekin.errors import InvalidArgumentError
from imagekin.sources.formats import compression
from imagekin.sources.records import SourceError, printable, size_problem

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
# An archive is padded to its block size; more than this is not gone through to look for another archive.
_MAX_PADDING_BYTES = 64 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024
BLOCK_BYTES = tarfile.BLOCKSIZE
"""Bytes of a header."""

DAMAGE = (*compression.DAMAGE, tarfile.TarError, SourceError, OverflowError, RecursionError)
"""Exceptions on damaged input; RecursionError is due to long sequences of headers."""


class Stream:
    """A file that is read forwards, and whose next block can be looked at.

    Args:
        file: the file, decompressed.
        can_seek: whether skipping is done by seeking.
    """

    def __init__(self, file: IO[bytes], *, can_seek: bool) -> None:
        self._file = file
        self._can_seek = can_seek
        self._position = 0
        self._next = b""

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes, fewer only at the end."""
        data, self._next = self._next[:size], self._next[size:]
        if len(data) < size:
            data += self._file.read(size - len(data))
        self._position += len(data)
        return data

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, position: int) -> None:
        """Skip to a later position."""
        if self._can_seek and not self._next:
            self._position = self._file.seek(position)
            return
        while self._position < position and self.read(min(position - self._position, _CHUNK_BYTES)):
            pass

    def skip_padding(self) -> bool:
        """Skip zeros up to the next archive; return False at the end of the file.

        Raises:
            ReadError: there are too many.
        """
        for _ in range(_MAX_PADDING_BYTES // tarfile.BLOCKSIZE):
            block = self.read(tarfile.BLOCKSIZE)
            if not block:
                return False
            if block.strip(b"\0"):
                self._position -= len(block)
                self._next = block
                return True
        raise tarfile.ReadError("nothing but zeros")


class Archive:
    """An open archive.

    Args:
        stream: the archive, decompressed.
        bound: upper bound of its size in bytes; None when there is none.
    """

    def __init__(self, stream: Stream, bound: int | None) -> None:
        self._stream = stream
        self._bound = bound

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """Yield the members, whose contents can be read until the next one is asked for."""
        position = -1
        while True:
            with tarfile.open(fileobj=cast("IO[bytes]", self._stream), mode="r:", tarinfo=_Member) as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # or it would keep every member
                    end = archive.offset
                    # A huge size would make it skip endlessly, and a negative one read the same member again.
                    if end <= position or (self._bound is not None and end > self._bound + tarfile.BLOCKSIZE):
                        raise tarfile.ReadError("impossible size")
                    position = end
                    yield member
            if not self._stream.skip_padding():
                return

    def read(self, member: tarfile.TarInfo) -> bytes:
        """Read the contents of the member that was yielded last."""
        data = self._stream.read(member.size)
        if len(data) != member.size:
            raise tarfile.ReadError("unexpected end of data")
        return data

    @property
    def position(self) -> int:
        """Number of bytes up to here."""
        return self._stream.tell()


@contextmanager
def opened(file: IO[bytes]) -> Iterator[Archive]:
    """Open an archive from a file that is open for buffered reading, compressed or not."""
    kind = compression.compression_of(compression.peek(file))
    bound = _size(file)
    if kind is None:
        yield Archive(Stream(file, can_seek=file.seekable()), bound)
        return
    with compression.decompressed(file, kind) as stream:
        yield Archive(Stream(stream, can_seek=False), None if bound is None else bound * kind.ratio)


def is_compressed(file: IO[bytes]) -> bool:
    """Return whether the archive is compressed, without changing the file's position."""
    return compression.compression_of(compression.peek(file)) is not None


def is_tar(head: bytes) -> bool:
    """Return whether a file with these first 512 bytes is a tar archive: the checksum of its first header is right."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


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
        with open(path, "rb") as file, opened(file) as archive:
            for member in archive:
                if member.isdir() or not wanted(member.name):
                    continue
                problem = problem_of(member, key_of(member), max_bytes)
                if problem:
                    raise InvalidArgumentError(f"{printable(member.name)} of {path.name}: {problem}", field="source")
                yield member.name, archive.read(member)
    except DAMAGE as error:
        raise InvalidArgumentError(f"{path} is cut off or damaged ({error})", field="source") from error


def key_of(member: tarfile.TarInfo) -> str:
    """Return a member's path without empty and `.` parts; an absolute one stays as it is."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    return member.name if member.name.startswith("/") else "/".join(parts)


def problem_of(member: tarfile.TarInfo, key: str, max_bytes: int) -> str | None:
    """Return the reason why a member is not read; None when it is."""
    if leads_outside(key):
        return "its name leads out of the archive"
    if not member.isreg() or member.issparse():
        return "it is a link, a device or a sparse file; archive the file itself"
    if member.size < 0:
        return "its size is negative"
    return size_problem(member.size, max_bytes)


def leads_outside(key: str) -> bool:
    """Return whether a member's path would lie outside of a folder that the archive is unpacked to."""
    return key.startswith("/") or ".." in key.split("/")


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


def _size(file: IO[bytes]) -> int | None:
    """Return the size of a file in bytes; None for a pipe and for an empty file."""
    if not file.seekable():
        return None
    here = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(here)
    return size or None
