"""Open the places that bytes come from: files of this machine, and URLs through fsspec."""

import errno
import io
import os
import stat
from pathlib import PurePosixPath
from typing import IO, Any, Protocol, cast
from urllib.parse import urljoin, urlsplit

from imagekin.errors import FailedPreconditionError, ImageError, ImagekinError, InvalidArgumentError
from imagekin.sources.records import SourceError, printable, size_problem
from imagekin.version import install_command

SCHEMES = ("s3", "gs", "gcs", "http", "https")
_BUFFER_BYTES = 1024 * 1024
_PERMANENT_ERRORS = frozenset({errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR})


class Place(Protocol):
    """A file that may be opened more than once."""

    @property
    def name(self) -> str:
        """Last part of the path."""
        ...

    @property
    def shown(self) -> str:
        """Text for messages, without credentials."""
        ...

    def open(self) -> IO[bytes]:
        """Open it for buffered reading; raises OSError or SourceError."""
        ...

    def read(self, max_bytes: int) -> bytes | ImagekinError:
        """Read all bytes, or return the error: a SourceError if trying again may help."""
        ...

    def resolve(self, path: str) -> "Place":
        """Return the place that a path in this file refers to; raises InvalidArgumentError."""
        ...


class LocalPlace:
    """A file of this machine.

    Args:
        path: its path.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """Last part of the path."""
        return os.path.basename(self.path)

    @property
    def shown(self) -> str:
        """Printable form of the path."""
        return printable(self.path)

    def open(self) -> IO[bytes]:
        """Open it; see `Place`."""
        return open(self.path, "rb")

    def read(self, max_bytes: int) -> bytes | ImagekinError:
        """Read all bytes; see `Place`."""
        try:
            status = os.stat(self.path)
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
                return ImageError("it is no ordinary file")
            problem = size_problem(status.st_size, max_bytes)
            if problem:
                return ImageError(problem)
            with open(self.path, "rb", buffering=0) as file:
                data = file.read(max_bytes + 1)  # it may have grown since
                while len(data) < status.st_size and (more := file.read(max_bytes + 1 - len(data))):
                    data += more
            return ImageError(str(size_problem(len(data), max_bytes))) if len(data) > max_bytes else data
        except (FileNotFoundError, NotADirectoryError) as error:
            return ImageError(f"it cannot be read ({error.strerror})")
        except ValueError:
            return ImageError("its path cannot be that of a file")
        except OSError as error:
            # Circular links and too long names are permanent errors; others may be temporary.
            kind = ImageError if error.errno in _PERMANENT_ERRORS else SourceError
            return kind(f"it cannot be read ({error.strerror})")

    def resolve(self, path: str) -> Place:
        """Return the place of a path relative to this file's folder, of an absolute path or of a URL."""
        if is_url(path):
            return RemotePlace(path)
        return LocalPlace(os.path.join(os.path.dirname(self.path), path))


class RemotePlace:
    """A file at a URL, read through fsspec.

    Args:
        url: a URL with a scheme of `SCHEMES`.

    Raises:
        InvalidArgumentError: another scheme.
        FailedPreconditionError: the package for the scheme is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._system, self._path = file_system(url)

    @property
    def name(self) -> str:
        """Last part of the URL's path."""
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def shown(self) -> str:
        """Printable form of the URL, without credentials and query."""
        parts = urlsplit(self.url)
        return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")

    def __reduce__(self) -> tuple[type["RemotePlace"], tuple[str]]:
        """Pickle only the URL; the other process makes its own connection."""
        return RemotePlace, (self.url,)

    def open(self) -> IO[bytes]:
        """Open it; see `Place`."""
        try:
            file = self._system.open(self._path, "rb", cache_type="readahead")
            return cast("IO[bytes]", io.BufferedReader(cast("Any", _Raw(file)), _BUFFER_BYTES))
        except Exception as error:
            raise SourceError(f"{self.shown} cannot be read ({first_line(error)})") from None

    def read(self, max_bytes: int) -> bytes | ImagekinError:
        """Read all bytes; see `Place`."""
        try:
            with self._system.open(self._path, "rb") as file:
                data = cast("bytes", file.read(max_bytes + 1))
        except FileNotFoundError:
            return ImageError("there is no such file")
        except Exception as error:  # file systems raise exceptions of their own
            return SourceError(f"it cannot be read ({first_line(error)})")
        return ImageError(f"it has more than the {max_bytes:,} bytes it may have") if len(data) > max_bytes else data

    def resolve(self, path: str) -> Place:
        """Return the place of a URL, or of a path relative to this one; never a file of this machine."""
        if is_url(path):
            return RemotePlace(path)
        if path.startswith("/") or ".." in path.split("/"):
            raise InvalidArgumentError(f"{printable(path)[:200]} leads away from {self.shown}")
        if urlsplit(self.url).scheme in ("http", "https"):
            return RemotePlace(urljoin(self.url, path))
        return RemotePlace(f"{self.url.rpartition('/')[0]}/{path}")


class _Raw:
    """An adapter of fsspec's files to BufferedReader that turns their exceptions into OSError."""

    closed = False

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        try:
            return bool(self._file.seekable())
        except Exception:
            return False

    def readinto(self, buffer: Any) -> int:
        data = self._call("read", len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._call("seek", offset, whence))

    def tell(self) -> int:
        return int(self._call("tell"))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
        self._file.close()

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._file, name)(*arguments)
        except OSError:
            raise
        except Exception as error:
            raise OSError(first_line(error)) from None


def is_url(text: str) -> bool:
    """Return whether a text is a URL with a scheme of `SCHEMES`."""
    return text.partition("://")[0].lower() in SCHEMES and "://" in text


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it.

    Raises:
        InvalidArgumentError: the scheme is not one of `SCHEMES`.
        FailedPreconditionError: a package is missing.
    """
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise InvalidArgumentError(f"{printable(scheme)}:// is none of {', '.join(SCHEMES)}", field="source")
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise FailedPreconditionError(
            f"reading {scheme}:// needs a package more ({first_line(error)}): {install_command('remote')}",
            field="source",
        ) from None
    except Exception as error:
        raise FailedPreconditionError(f"{scheme}:// cannot be used ({first_line(error)})", field="source") from None
    return system, path


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, printable."""
    return printable((str(error).splitlines() or [""])[0][:200]) or type(error).__name__
