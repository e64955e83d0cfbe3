"""Image files in a zip archive, in the order of its directory; those that its tables list come first.

Nothing is unpacked to disk. What the directory says of a member is not trusted: no more than the limit is decompressed,
whatever size it states, and the library verifies checksums and refuses members that overlap, as those of zip bombs do.
"""

import io
import lzma
import posixpath
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from typing import IO, NamedTuple, cast

from imagekin.errors import ImagekinError, InvalidArgumentError
from imagekin.sources.formats.labelling import is_table_name, labelling_tables, listed_in
from imagekin.sources.formats.manifest import ManifestReader
from imagekin.sources.formats.table_paths import PackedFiles
from imagekin.sources.formats.tar_members import leads_outside
from imagekin.sources.ignored import NO_IMAGE, Ignored, Kind, ignored_kind, is_image_name, suffix_of
from imagekin.sources.pieces import Counted, ImageFile, Naming, Piece, Placed, Surveyed, WholeArchive, joined
from imagekin.sources.places import Place, is_url
from imagekin.sources.records import Record, SourceError, printable, record_of, size_problem
from imagekin.sources.splits import Split
from imagekin.sources.suffixes import splits_of_files

MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
"""First bytes of a zip archive, and of an empty one."""

# Names are of this encoding unless a flag says that they are UTF-8; some programs write UTF-8 without the flag.
_OLD_NAMES = "cp437"
_UTF8_FLAG = 0x800
# All tables of an archive together, because they are held in memory.
_MAX_TABLE_BYTES = 64 * 2**20
_DAMAGE = (zipfile.BadZipFile, OSError, SourceError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError)


class ZipReader:
    """The image files of a zip archive.

    Args:
        place: the archive; it must be seekable, because the directory is at its end.
        max_bytes: larger members are not read.
        label_column: the tables' column of labels, if the user named it; None to find it.
    """

    embedded = None

    def __init__(self, place: Place, max_bytes: int, label_column: str | None = None) -> None:
        self.place = place
        self.max_bytes = max_bytes
        self.label_column = label_column
        self._counted: int | None = None

    def survey(self, *, whole: bool = False) -> Iterator[Surveyed]:
        """Yield the paths of all images, and what tables say of theirs, see `Reader`."""
        try:
            with closing(self.place.open()) as file, zipfile.ZipFile(file) as archive:
                tables = self._tables(archive)
                listed = listed_in(tables.items_by_folder())
                found = [path for member in archive.infolist() if (path := _image(member)) and path not in listed]
            self._counted = len(found)
            yield from found
            for name, table in tables.readers.items():
                split = tables.splits.get(name)
                yield from (_moved(one, posixpath.dirname(name), split) for one in table.survey(whole=True))
                self._counted += table.count() or 0
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
                tables = self._tables(archive)
                for name, table in tables.readers.items():
                    yield from self._listed(archive, name, table, tables, naming)
                listed = listed_in(tables.items_by_folder())
                for member in archive.infolist():
                    path = _path(member)
                    if member.is_dir() or path.endswith("/") or path in tables.readers:
                        continue
                    if kind := tables.ignored.get(path) or ignored_kind(path.lstrip("/")):
                        ignored.add(kind)
                    elif path not in listed:
                        label, split = naming.named(path)
                        yield record_of(naming.key + path, self._read(archive, member, path), label, split=split)
        except _DAMAGE as error:
            problem = f"the archive is cut off or damaged ({_said(error)})"
            yield naming.failure(self.place.name, SourceError(problem))

    def _tables(self, archive: zipfile.ZipFile) -> "_Tables":
        """Read the tables that label images of the archive."""
        names = {
            path: member
            for member in archive.infolist()
            if is_table_name(path := _path(member)) and ignored_kind(path) == Kind(suffix_of(path), NO_IMAGE)
        }
        if not names:
            return _Tables({}, {}, {})
        images = [image for member in archive.infolist() if (image := _image(member))]

        room = _MAX_TABLE_BYTES

        def reader_of(name: str) -> ManifestReader:
            nonlocal room
            data = self._read(archive, names[name], name, room) if room else ""
            room -= len(data) if isinstance(data, bytes) else 0
            place = _Packed(name, data if isinstance(data, bytes) else b"")
            return ManifestReader(
                place, self.max_bytes, self.label_column, PackedFiles(images, posixpath.dirname(name))
            )

        found = labelling_tables(list(names), reader_of)
        readers = {name: reader for name, (_, reader) in found.items() if reader is not None}
        ignored = {name: kind for name, (kind, _) in found.items() if kind is not None}
        return _Tables(readers, ignored, splits_of_files(list(readers)))

    def _listed(
        self, archive: zipfile.ZipFile, name: str, table: ManifestReader, tables: "_Tables", naming: Naming
    ) -> Iterator[Record]:
        """Read the images that a table lists."""
        members = {_path(member): member for member in archive.infolist()}
        folder = posixpath.dirname(name)
        inside = f"{folder}/" if folder else ""
        split = naming.split or tables.splits.get(name)
        for piece in table.pieces(Naming(naming.rule, naming.key + inside, naming.path + inside, split), Ignored()):
            if not isinstance(piece, ImageFile) or not isinstance(piece.place, _Packed):
                yield from piece
                continue
            member = members.get(piece.place.path)
            data = self._read(archive, member, piece.place.path) if member else "it is not in the archive"
            yield record_of(piece.key, data, piece.label, piece.payload, split=piece.split)

    def _read(
        self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str, max_bytes: int | None = None
    ) -> bytes | str:
        """Return the bytes of a member, or a message why there are none."""
        most = max_bytes or self.max_bytes
        if leads_outside(path):
            return "its name leads out of the archive"
        if problem := size_problem(member.file_size, most):
            return problem
        try:
            with archive.open(member) as file:
                data = file.read(most + 1)
        except RuntimeError:
            return "it is encrypted, or was compressed in a way that is not supported"
        except _DAMAGE as error:
            return f"it is damaged in the archive ({_said(error)})"
        return size_problem(len(data), most) or data


class _Tables(NamedTuple):
    """The tables of an archive.

    Attributes:
        readers: those that are used, by their paths.
        ignored: the kinds as which others are ignored.
        splits: the splits that their names state.
    """

    readers: Mapping[str, ManifestReader]
    ignored: Mapping[str, Kind]
    splits: Mapping[str, Split]

    def items_by_folder(self) -> list[tuple[str, ManifestReader]]:
        """Return the readers with the folders that they are in."""
        return [(posixpath.dirname(name), reader) for name, reader in self.readers.items()]


class _Packed:
    """A member of an archive as the place of a table, or the place that a path in the table means.

    Args:
        path: its path in the archive.
        data: its bytes; empty for an image, which is read otherwise.
    """

    def __init__(self, path: str, data: bytes = b"") -> None:
        self.path = path
        self._data = data

    @property
    def name(self) -> str:
        """Last part of the path."""
        return posixpath.basename(self.path)

    @property
    def shown(self) -> str:
        """Printable form of the path."""
        return printable(self.path)

    def open(self) -> IO[bytes]:
        """Open it; see `Place`."""
        return cast("IO[bytes]", io.BufferedReader(cast("io.RawIOBase", io.BytesIO(self._data))))

    def read(self, max_bytes: int) -> bytes | ImagekinError:
        """Return its bytes; see `Place`."""
        return self._data

    def resolve(self, path: str) -> "_Packed":
        """Return the place of a path relative to the table; see `Place`."""
        if is_url(path):
            raise InvalidArgumentError("a table in an archive names a URL, which is not fetched", field="source")
        return _Packed(posixpath.normpath(posixpath.join(posixpath.dirname(self.path), path)))


def _moved(found: Surveyed, folder: str, split: Split | None) -> Surveyed:
    """Put the folder that a table is in before the paths that it gives, and add the split that its name states."""
    inside = f"{folder}/" if folder else ""
    if found is None:
        return None
    if isinstance(found, Counted):
        named = found.named._replace(split=found.named.split or split)
        return found._replace(named=named, folder=joined(inside, found.folder).rstrip("/"))
    if isinstance(found, Placed):
        return found._replace(path=joined(inside, found.path))
    path = joined(inside, found)
    return path if split is None else Placed(path, split)


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
