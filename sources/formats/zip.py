"""Image files in a zip archive, in the order of its directory.

Nothing is unpacked to disk. What the directory says of a member is not trusted: no more than the limit is decompressed,
whatever size it states, and the library verifies checksums and refuses members that overlap, as those of zip bombs do.
"""

import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress

from imagekin.sources.formats.tar_members import leads_outside
from imagekin.sources.ignored import Ignored, ignored_kind, is_image_name
from imagekin.sources.pieces import Naming, Piece, Surveyed, WholeArchive
from imagekin.sources.places import Place
from imagekin.sources.records import Record, SourceError, printable, record_of, size_problem

MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
"""First bytes of a zip archive, and of an empty one."""

# Names are of this encoding unless a flag says that they are UTF-8; some programs write UTF-8 without the flag.
_OLD_NAMES = "cp437"
_UTF8_FLAG = 0x800
_DAMAGE = (zipfile.BadZipFile, OSError, SourceError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError)


class ZipReader:
    """The image files of a zip archive.

    Args:
        place: the archive; it must be seekable, because the directory is at its end.
        max_bytes: larger members are not read.
    """

    embedded = None

    def __init__(self, place: Place, max_bytes: int) -> None:
        self.place = place
        self.max_bytes = max_bytes
        self._counted: int | None = None

    def survey(self, *, whole: bool = False) -> Iterator[Surveyed]:
        """Yield the paths of all images, see `Reader`."""
        try:
            with closing(self.place.open()) as file, zipfile.ZipFile(file) as archive:
                found = [path for member in archive.infolist() if (path := _image(member))]
            self._counted = len(found)
            yield from found
        except _DAMAGE:
            yield None

    def pieces(self, naming: Naming, ignored: Ignored) -> Iterator[Piece]:
        """Yield the archive as one piece, see `Reader`."""
        yield WholeArchive(self, naming)

    def count(self) -> int | None:
        """Return the number of records."""
        if self._counted is not None:
            return self._counted
        try:
            with closing(self.place.open()) as file, zipfile.ZipFile(file) as archive:
                return sum(_image(member) is not None for member in archive.infolist())
        except _DAMAGE:
            return None

    def records(self, naming: Naming, ignored: Ignored) -> Iterator[Record]:
        """Read the records, and count the members that are ignored."""
        try:
            with closing(self.place.open()) as file, zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    path = _path(member)
                    if member.is_dir() or path.endswith("/"):
                        continue
                    if kind := ignored_kind(path.lstrip("/")):
                        ignored.add(kind)
                        continue
                    label, split = naming.named(path)
                    yield record_of(naming.key + path, self._read(archive, member, path), label, split=split)
        except _DAMAGE as error:
            problem = f"the archive is cut off or damaged ({_said(error)})"
            yield naming.failure(self.place.name, SourceError(problem))

    def _read(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str) -> bytes | str:
        """Return the bytes of a member, or a message why there are none."""
        if leads_outside(path):
            return "its name leads out of the archive"
        if problem := size_problem(member.file_size, self.max_bytes):
            return problem
        try:
            with archive.open(member) as file:
                data = file.read(self.max_bytes + 1)
        except RuntimeError:
            return "it is encrypted, or was compressed in a way that is not supported"
        except _DAMAGE as error:
            return f"it is damaged in the archive ({_said(error)})"
        return size_problem(len(data), self.max_bytes) or data


def _image(member: zipfile.ZipInfo) -> str | None:
    """Return the path of a member that is an image; None for others."""
    path = _path(member)
    return None if member.is_dir() or not is_image_name(path.lstrip("/")) else path


def _path(member: zipfile.ZipInfo) -> str:
    """Return a member's path with `/` between its parts, without empty and `.` parts."""
    name = member.orig_filename
    if not member.flag_bits & _UTF8_FLAG:
        with suppress(UnicodeError):
            name = name.encode(_OLD_NAMES).decode()
    name = name.partition("\0")[0].replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return ("/" if name.startswith("/") else "") + "/".join(parts) + ("/" if name.endswith("/") else "")


def _said(error: Exception) -> str:
    return printable((str(error).splitlines() or [""])[0][:200]) or type(error).__name__
