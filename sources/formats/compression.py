"""Decompress files as they are read: gzip, bzip2, xz and Zstandard, recognised by their first bytes.

Files of several compressed parts are read to the end of the last one. Of a truncated or damaged file, everything before
the damage is returned before the error is raised.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Protocol, cast

from imagekin.errors import FailedPreconditionError
from imagekin.version import install_command

_CHUNK_BYTES = 64 * 1024
# A dictionary of xz -9 has 64 MiB; a file can demand 4 GiB.
_XZ_MEMORY = 256 * 2**20
_LONGEST_MAGIC = 6

DAMAGE = (zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)
"""Exceptions of decompression on damaged input."""


class _Decompressor(Protocol):
    """The interface that the decompressors of the standard library have in common."""

    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gunzip:
    """zlib's decompressor, with the interface of the others: it keeps the input that an output limit leaves over."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)  # gzip, whose checksum it verifies

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


@dataclass(frozen=True, slots=True)
class Compression:
    """A kind of compression.

    Attributes:
        magic: first bytes of its files.
        ratio: upper bound of decompressed by compressed size, which bounds what a file can hold.
        trailer: bytes of checksums and sizes at the end of a part, after its contents.
        decompressor: makes a decompressor of one part; None for Zstandard, which Arrow decompresses.
    """

    magic: bytes
    ratio: int
    trailer: int
    decompressor: Callable[[], Any] | None


_COMPRESSIONS = (
    Compression(b"\x1f\x8b", 1040, 8, _Gunzip),  # deflate's best is 1032:1
    Compression(b"BZh", 50_000, 10, bz2.BZ2Decompressor),
    Compression(b"\xfd7zXZ\0", 10_000, 28, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)),
    Compression(b"\x28\xb5\x2f\xfd", 150_000, 0, None),
)


def compression_of(head: bytes) -> Compression | None:
    """Return the compression of a file with these first bytes; None when it is not compressed."""
    return next((one for one in _COMPRESSIONS if head.startswith(one.magic)), None)


def peek(file: IO[bytes], size: int = _LONGEST_MAGIC) -> bytes:
    """Return the first bytes of a file that is open for buffered reading, without moving on."""
    return cast("bytes", file.peek(size))[:size]  # type: ignore[attr-defined]


def decompressed(file: IO[bytes], compression: Compression) -> IO[bytes]:
    """Return a stream of a file's decompressed bytes, which ends where the file does.

    Raises:
        FailedPreconditionError: a package is missing.
    """
    if compression.decompressor is None:
        return _zstandard(file)
    raw = _Decompressed(file, compression.decompressor, compression.trailer)
    return cast("IO[bytes]", io.BufferedReader(raw, _CHUNK_BYTES))


class _Decompressed(io.RawIOBase):
    """The decompressed bytes of a file of one or more compressed parts.

    Args:
        file: the file.
        decompressor: makes a decompressor of one part.
        trailer: see `Compression`.
    """

    def __init__(self, file: IO[bytes], decompressor: Callable[[], Any], trailer: int) -> None:
        self._file = file
        self._new = decompressor
        self._trailer = trailer
        self._part: Any = decompressor()
        self._held = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        """Return at most `size` bytes, none only at the end."""
        while True:
            if self._part.eof:
                rest = self._next_part()
                if not rest:
                    return b""
                self._part = self._new()
            else:
                rest = self._more() if self._part.needs_input else b""
                if not rest and self._part.needs_input:
                    raise EOFError("compressed data end too early")
            if data := self._part.decompress(rest, size):
                return cast("bytes", data)

    def _more(self) -> bytes:
        """Read compressed bytes, none only at the end; the last ones alone, so that a wrong checksum costs no data."""
        while chunk := self._file.read(_CHUNK_BYTES):
            data = self._held + chunk
            self._held = data[-self._trailer :]
            if len(data) > self._trailer:
                return data[: -self._trailer]
        data, self._held = self._held, b""
        return data

    def _next_part(self) -> bytes:
        """Return the first bytes of the next part, none at the end; zeros between parts are padding, as on tapes."""
        rest = self._part.unused_data
        while not (begin := rest.lstrip(b"\0")):
            rest = self._more()
            if not rest:
                return b""
        return cast("bytes", begin)


def _zstandard(file: IO[bytes]) -> IO[bytes]:
    try:
        import pyarrow as pa
    except ImportError:
        raise FailedPreconditionError(
            f"Zstandard needs a package more: {install_command('parquet')}", field="source"
        ) from None
    return cast("IO[bytes]", pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"))
