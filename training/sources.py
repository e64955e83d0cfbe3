"""Where training images come from: folders and tar archives of class folders, as a stream of named bytes.

Archives are read once, front to back, and nothing is ever unpacked to disk. What an archive says is not believed:
links, devices, absolute names, names that climb out and members too large for an image are refused, one by one.
"""

import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from encoder.errors import InvalidArgumentError, NotFoundError

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"}
    | {".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""Files of other suffixes (a README, a CSV) are passed over without a word."""

_HIDDEN = re.compile(r"\.[^.]")

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a source.

    Attributes:
        name: path relative to the source's root, with forward slashes.
        data: its bytes; empty when it was refused.
        problem: why it was refused; empty when it was not.
    """

    name: str
    data: bytes = b""
    problem: str = ""


def is_archive(path: Path) -> bool:
    """Say whether the name is one of a tar archive."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def is_image_name(name: str) -> bool:
    """Say whether a file of that name is looked at: an image's suffix, and no part hidden by a leading dot."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(_HIDDEN.match(part) for part in path.parts)


def read_folder(root: Path) -> Iterator[Path]:
    """Yield the image files below `root`, sorted by relative name, following no links to folders."""
    found = (path for path in root.rglob("*") if is_image_name(path.relative_to(root).as_posix()) and path.is_file())
    yield from sorted(found, key=lambda path: path.relative_to(root).as_posix())


def read_file(root: Path, path: Path, max_bytes: int) -> Entry:
    """Read one file below `root`; what cannot be read is an entry with a problem."""
    name = path.relative_to(root).as_posix()
    try:
        size = path.stat().st_size
        if size > max_bytes:
            return Entry(name, problem=f"{size} bytes are more than the {max_bytes} allowed")
        return Entry(name, path.read_bytes())
    except OSError as error:
        return Entry(name, problem=f"cannot be read ({error.strerror})")


def read_archive(path: Path, max_bytes: int, wanted: Callable[[str], bool] = is_image_name) -> Iterator[Entry]:
    """Yield the files of a tar archive whose name is `wanted`, in their order, reading it once.

    Args:
        path: a .tar, or one compressed by gzip.
        max_bytes: larger members are entries with a problem, and are not read.
        wanted: says for a member's name whether it matters.

    Raises:
        InvalidArgumentError: the file is no tar archive, or is cut off.
    """
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isdir() or not wanted(name):
                    continue
                yield _read_member(archive, member, name, max_bytes)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist", field="data") from error
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        raise InvalidArgumentError(f"{path} is no tar archive, or is cut off: {error}", field="data") from error


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, max_bytes: int) -> Entry:
    if not member.isreg():
        return Entry(name, problem="a link or a device, not a file")
    if name.startswith("/") or ".." in PurePosixPath(name).parts or "\0" in name:
        return Entry(name, problem="a name that leaves the archive")
    if member.size > max_bytes:
        return Entry(name, problem=f"{member.size} bytes are more than the {max_bytes} allowed")
    stream = archive.extractfile(member)
    data = b"" if stream is None else stream.read()
    if len(data) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return Entry(name, data)
